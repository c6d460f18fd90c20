"""Routes of the llamacpp API."""

from fastapi import APIRouter

router = APIRouter()
