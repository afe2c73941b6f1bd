"""Pictures with captions, or without: one file per source."""

from .base import SOURCES, DataError, PictureDataset, Skipped, cycle, open_source
from .emoji import Emoji64, emoji64
from .folder import Dataset
from .huggingface import TableDataset, hub_dataset
from .loaders import Collator, get_images_dataloader

__all__ = [
    "SOURCES",
    "Collator",
    "DataError",
    "Dataset",
    "Emoji64",
    "PictureDataset",
    "Skipped",
    "TableDataset",
    "cycle",
    "emoji64",
    "get_images_dataloader",
    "hub_dataset",
    "open_source",
]
