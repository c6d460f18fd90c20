"""Routes of the responses API."""

from fastapi import APIRouter

router = APIRouter()
