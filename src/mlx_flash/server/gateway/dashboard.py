"""Routes of the dashboard API."""

from fastapi import APIRouter

router = APIRouter()
