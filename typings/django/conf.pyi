# What the project uses of Django's settings.
class Settings:
    configured: bool
    def configure(self, **options: object) -> None: ...

settings: Settings
