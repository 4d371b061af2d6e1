"""Pages of metrics, read again."""

from prometheus_client.parser import text_string_to_metric_families


def read(page: str) -> list[tuple[str, str, str, dict[tuple[str, frozenset[tuple[str, str]]], float]]]:
    """What a page says: of each family its name, type and meaning, and each of its samples."""
    return [
        (
            family.name,
            family.type,
            family.documentation,
            {(sample.name, frozenset(sample.labels.items())): sample.value for sample in family.samples},
        )
        for family in text_string_to_metric_families(page)
    ]
