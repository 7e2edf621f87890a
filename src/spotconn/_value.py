"""The base of the values: frozen, and no token in a dump or in a validation error."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import no_info_wrap_validator_function

HIDDEN_INPUT = "(not shown)"
"""What the validation errors of a value have in place of the input, which may be a token."""


def _without_input(error: ValidationError) -> ValidationError:
    """Return an error of the same fields and reasons that holds neither the input nor the context."""
    found = cast("list[dict[str, Any]]", error.errors(include_url=False, include_context=False, include_input=False))
    details = [
        InitErrorDetails(type=PydanticCustomError(line["type"], line["msg"]), loc=line["loc"], input=HIDDEN_INPUT)
        for line in found
    ]
    return ValidationError.from_exception_data(error.title, details, hide_input=True)


def _validated(value: Any, validate: Callable[[Any], Any]) -> Any:
    try:
        return validate(value)
    except ValidationError as error:
        refused = _without_input(error)
    raise refused  # outside of the handler, so that the first error is not its context


class Value(BaseModel):
    """A frozen value. Its validation errors never hold the input; fields with `exclude=True` are in no dump of it."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Take the input out of the errors. `hide_input_in_errors` does so in their text only."""
        return no_info_wrap_validator_function(_validated, handler(source))

    if not TYPE_CHECKING:  # a checker would take the first as leave to assign any attribute, and lose signatures

        def __setattr__(self, name: str, value: object) -> None:
            """Refuse in words of our own: pydantic's would repeat the value, which may be a token."""
            raise AttributeError(f"{name}: a {type(self).__name__} is frozen")

        def __iter__(self) -> Iterator[tuple[str, Any]]:
            """Yield what a dump has: this is `dict(value)`."""
            hidden = {name for name, field in type(self).model_fields.items() if field.exclude}
            return ((name, value) for name, value in super().__iter__() if name not in hidden)

        @classmethod
        def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
            """Validate a JSON text. The error about one that is no JSON would hold all of it."""
            try:
                return super().model_validate_json(json_data, **options)
            except ValidationError as error:
                refused = _without_input(error)
            raise refused
