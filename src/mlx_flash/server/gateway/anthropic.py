"""Routes of the anthropic API."""

from fastapi import APIRouter

router = APIRouter()
