"""Suffixes of the files that are taken for images or videos; their contents are seen when they are opened."""

# GIF and the like cannot be read, so each of them will be named as bad; leaving them out here would drop samples
# without a word. The same holds for videos of formats that are not opened.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib"}
    | {".tif", ".tiff", ".gif", ".eps", ".avif", ".heic", ".heif", ".svg"}
)
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp", ".wmv", ".asf"}
    | {".flv", ".ogv"}
)
