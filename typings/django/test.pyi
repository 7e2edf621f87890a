# What the project uses of Django's test clients.
from collections.abc import Coroutine
from typing import Any

from django.http import HttpResponse

class Client:
    def get(self, path: str) -> HttpResponse: ...

class AsyncClient:
    def get(self, path: str) -> Coroutine[Any, Any, HttpResponse]: ...
