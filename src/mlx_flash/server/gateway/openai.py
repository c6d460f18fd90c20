"""Routes of the openai API."""

from fastapi import APIRouter

router = APIRouter()
