"""Images and videos with captions, or without: one file per source."""

from ..renamed import renamed
from .base import SOURCES, DataError, ImageDataset, Skipped, cycle
from .clips import VideoDataset
from .emoji import Emoji64, emoji64
from .folder import Dataset
from .huggingface import TableDataset, hub_dataset
from .loaders import Collator, collate_mixed, get_images_dataloader
from .moving_digits import MovingDigits, centre_track, moving_digits
from .skipping import DataUnavailable, SkippedReport, check_share
from .sources import open_source

__all__ = [
    "SOURCES",
    "Collator",
    "DataError",
    "DataUnavailable",
    "Dataset",
    "Emoji64",
    "ImageDataset",
    "MovingDigits",
    "Skipped",
    "SkippedReport",
    "TableDataset",
    "VideoDataset",
    "centre_track",
    "check_share",
    "collate_mixed",
    "cycle",
    "emoji64",
    "get_images_dataloader",
    "hub_dataset",
    "moving_digits",
    "open_source",
]

__getattr__ = renamed(__name__, {"PictureDataset": "ImageDataset"})
