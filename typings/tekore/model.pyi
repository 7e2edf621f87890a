class PrivateUser:
    id: str
    display_name: str

class FullTrack:
    name: str

class FullTrackPaging:
    items: list[FullTrack]
    total: int
    next: str | None
