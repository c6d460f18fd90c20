"""Routes of the ollama API."""

from fastapi import APIRouter

router = APIRouter()
