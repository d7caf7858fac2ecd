"""Numbers as text: no more digits than their errors support."""

import math

MOST_PLACES, LARGEST = 6, 1e7  # of a number that is written without an exponent


def with_error(value: float, error: float) -> str:
    """Write a number and its standard error with one digit of the error, or two where the first is a 1.

    Without an error, that is one of 0 or not finite, the number has four digits.
    """
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return plain(value)
    power = math.floor(math.log10(error))
    places = -power + (round(error / 10**power, 1) < 2)
    if places > MOST_PLACES or abs(value) >= LARGEST:
        scale = math.floor(math.log10(max(abs(value), error)))
        digits = max(places + scale, 0)
        return f"({value / 10**scale:.{digits}f} ± {error / 10**scale:.{digits}f})e{scale}"
    value, error = round(value, places), round(error, places)
    return f"{value:,.{max(places, 0)}f} ± {error:,.{max(places, 0)}f}"


def error_of_share(share: float, rows: float) -> float:
    """Return the standard error of a share of so many rows."""
    return math.sqrt(share * (1 - share) / max(rows, 1))


def plain(value: float, digits: int = 4) -> str:
    """Write a number with some digits, and commas between thousands."""
    if not math.isfinite(value) or value == 0 or not 1e-4 <= abs(value) < LARGEST:
        return f"{value:.{digits}g}"
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
