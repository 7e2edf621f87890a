from pathlib import Path

class CacheFileHandler:
    def __init__(self, cache_path: Path) -> None: ...
