"""Which room may know which: imports only go down, and what must stay in one room stays there."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gateway"

# From the ground up. A package's name stands for all in it; a module's own line wins over its package's.
FLOORS: list[tuple[str, list[str]]] = [
    ("words", ["gateway", "gateway.errors", "gateway.call", "gateway.alarm", "gateway.kinds"]),
    ("pure", ["gateway.outcome", "gateway.policy", "gateway.wire", "gateway.dialects"]),
    ("adapters", ["gateway.transport", "gateway.store", "gateway.observe", "gateway.tasks", "gateway.templates"]),
    ("state", ["gateway.fleet", "gateway.health", "gateway.admission", "gateway.discovery", "gateway.load"]),
    ("flow", ["gateway.flow"]),
    ("face", ["gateway.api"]),
    (
        "assembly",
        [
            "gateway.app",
            "gateway.assembly",
            "gateway.server",
            "gateway.cli",
            "gateway.demo",
            "gateway.config",
            "gateway.explain",
            "gateway.online",
        ],
    ),
]
FLOOR_OF = {room: number for number, (_, rooms) in enumerate(FLOORS) for room in rooms}

# The command line answers `check` and `--help` without waiting for a server's imports.
DEFERRED = {("gateway.cli", "gateway.server"), ("gateway.cli", "gateway.demo"), ("gateway.cli", "gateway.online")}

LONGEST = 450  # lines of a file
PURE = ("gateway.outcome", "gateway.wire", "gateway.dialects", "gateway.policy")
IMPURE = {"asyncio", "time", "random", "socket", "structlog", "logging", "os", "threading", "prometheus_client"}
# An exception is told apart by its class, and no socket is opened.
ALLOWED = {("gateway.outcome", "socket")}
CLIENTS = {"AsyncClient", "Client", "AsyncHTTPTransport", "HTTPTransport", "AsyncConnectionPool", "ClientSession"}


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_name(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}


def imported(node: ast.AST) -> Iterator[str]:
    """The modules that a statement imports, ours by the module and not by what is taken from it."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in TREES else node.module


def imports(module: str) -> set[str]:
    return {name for node in ast.walk(TREES[module]) for name in imported(node)}


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name == "gateway" or name.startswith("gateway.")}


def floor(module: str) -> int:
    room = module
    while room not in FLOOR_OF:
        assert "." in room, f"{module} has no floor"
        room = room.rpartition(".")[0]
    assert room != "gateway" or module == "gateway", f"{module} has no floor"
    return FLOOR_OF[room]


@pytest.mark.parametrize("module", TREES)
def test_a_module_imports_nothing_from_a_floor_above_its_own(module: str) -> None:
    upward = {name for name in ours(module) if floor(name) > floor(module)}
    assert upward == set(), f"{module} is on the floor of {FLOORS[floor(module)][0]}"


def test_no_imports_go_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module in done:
            return
        for name in sorted(ours(module)):
            visit(name, [*way, module])
        done.add(module)

    for module in TREES:
        visit(module, [])


@pytest.mark.parametrize("module", TREES)
def test_no_import_of_ours_is_put_off_but_where_it_is_said_why(module: str) -> None:
    functions = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    deferred = {name for function in functions for node in ast.walk(function) for name in imported(node)}
    found = {(module, name) for name in deferred if name.split(".")[0] == "gateway"}
    assert found == {pair for pair in DEFERRED if pair[0] == module}


@pytest.mark.parametrize("module", TREES)
def test_no_file_is_too_long_to_be_read_at_once(module: str) -> None:
    assert len(SOURCES[module].splitlines()) <= LONGEST


@pytest.mark.parametrize("module", TREES)
def test_a_module_says_why_it_exists(module: str) -> None:
    assert ast.get_docstring(TREES[module])


@pytest.mark.parametrize("module", [name for name in TREES if name.startswith(PURE)])
def test_what_is_pure_knows_no_loop_no_clock_no_chance_and_no_logger(module: str) -> None:
    tops = {name.split(".")[0] for name in imports(module)}
    assert {top for top in tops & IMPURE if (module, top) not in ALLOWED} == set()


@pytest.mark.parametrize("module", [name for name in TREES if not name.startswith("gateway.config")])
def test_only_the_config_reads_the_environment(module: str) -> None:
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.name
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Attribute | ast.alias)
    }
    assert names.isdisjoint({"environ", "environb", "getenv", "getenvb"})


@pytest.mark.parametrize("module", [name for name in TREES if not name.startswith("gateway.transport")])
def test_only_the_transport_names_an_http_client(module: str) -> None:
    nodes = list(ast.walk(TREES[module]))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names.isdisjoint(CLIENTS)
    assert {name.split(".")[0] for name in imports(module)}.isdisjoint({"httpcore", "aiohttp", "requests", "urllib3"})


def test_only_one_file_knows_opentelemetrys_packages_and_only_one_its_names() -> None:
    users = {name for name in TREES if any(used.split(".")[0] == "opentelemetry" for used in imports(name))}
    assert users == {"gateway.observe.otlp"}
    namers = {name for name, source in SOURCES.items() if '"gen_ai.' in source or '"gateway.' in source}
    assert "gateway.observe.semconv" in namers
    spans = {name for name in namers if name != "gateway.observe.semconv" and '"gen_ai.' in SOURCES[name]}
    assert spans == set()


def test_a_missing_floor_an_upward_import_and_a_circle_would_be_found() -> None:
    assert floor("gateway.wire.sse") == floor("gateway.outcome") < floor("gateway.observe.log") < floor("gateway.fleet")
    assert "gateway.wire.patch" in ours("gateway.dialects.openai")
    assert "gateway.errors" in ours("gateway.outcome")
    with pytest.raises(AssertionError, match="has no floor"):
        floor("gateway.somewhere")
