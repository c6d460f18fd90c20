"""Routes of the models API."""

from fastapi import APIRouter

router = APIRouter()
