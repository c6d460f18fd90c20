"""Routes of the metrics API."""

from fastapi import APIRouter

router = APIRouter()
