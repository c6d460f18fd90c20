"""The list of text the model is trained on: where it comes from, its licence, how to fetch it.

Only licences that allow a redistributed model are in `ALLOWED`; anything else is left out.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ALLOWED = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|PSF|Python Software Foundation|public.domain)\b", re.I
)
REFUSED = re.compile(r"\b(A?GPL|LGPL|GFDL|MPL|EUPL|Artistic|Proprietary|copyleft)", re.I)
GPL_TEXT = re.compile(r"GNU (Lesser |Library |Affero )?General Public|\bL?GPL(v[23]|-[23])", re.I)
NUM_BYTES_PER_PACKAGE = 7_000_000


@dataclass(frozen=True)
class DocSource:
    """Pages inside one Debian package; `form` says how they are read."""

    package: str
    licence: str
    pages: str
    form: str


DOCS = (
    DocSource("python3.11-doc", "PSF-2.0", "python3.11/html/_sources/**/*.txt", "rst"),
    DocSource("python-jinja2-doc", "BSD-3-Clause", "*/html/_sources/**/*.txt", "rst"),
    DocSource("python-pandas-doc", "BSD-3-Clause", "*/html/_sources/*/[!p]*.rst.txt", "rst"),
    DocSource("python-pandas-doc", "BSD-3-Clause", "*/html/_sources/whatsnew/*.txt", "rst"),
    DocSource("python-sklearn-doc", "BSD-3-Clause", "*/html/_sources/**/*.txt", "rst"),
    DocSource("python-sympy-doc", "BSD-3-Clause", "*/html/_sources/**/*.txt", "rst"),
    DocSource("sphinx-doc", "BSD-2-Clause", "*/html/_sources/**/*.txt", "rst"),
    DocSource("cmake-doc", "BSD-3-Clause", "cmake-data/html/_sources/**/*.txt", "rst"),
    DocSource("llvm-14-doc", "Apache-2.0 WITH LLVM-exception", "*/html/_sources/**/*.txt", "rst"),
    DocSource("clang-14-doc", "Apache-2.0 WITH LLVM-exception", "*/html/_sources/**/*.txt", "rst"),
    DocSource("nodejs-doc", "MIT", "nodejs/api/*.md*", "markdown"),
    DocSource("docker-doc", "Apache-2.0", "docker-doc/**/*.md*", "markdown"),
    DocSource("sqlite3-doc", "public domain", "sqlite3/**/*.html", "html"),
    DocSource("python-django-doc", "BSD-3-Clause", "*/html/[!_]*/**/*.html", "html"),
    DocSource("python-sqlalchemy-doc", "MIT", "*/html/*/[!_]*.html", "html"),
    DocSource("apache2-doc", "Apache-2.0", "apache2-doc/manual/en/**/*.html", "html"),
    DocSource("erlang-doc", "Apache-2.0", "erlang-doc/erts-*/doc/html/*.html", "html"),
    DocSource("erlang-doc", "Apache-2.0", "erlang-doc/lib/stdlib-*/doc/html/*.html", "html"),
    DocSource("erlang-doc", "Apache-2.0", "erlang-doc/lib/kernel-*/doc/html/*.html", "html"),
    DocSource("erlang-doc", "Apache-2.0", "erlang-doc/lib/ssl-*/doc/html/*.html", "html"),
    DocSource("erlang-doc", "Apache-2.0", "erlang-doc/doc/**/*.html", "html"),
    DocSource("rust-doc", "MIT OR Apache-2.0", "rust-doc/html/*/**/ch*.html", "html"),
    DocSource("rust-doc", "MIT OR Apache-2.0", "rust-doc/html/reference/**/*.html", "html"),
    DocSource("rust-doc", "MIT OR Apache-2.0", "rust-doc/html/rust-by-example/**/*.html", "html"),
    DocSource("rust-doc", "MIT OR Apache-2.0", "rust-doc/html/nomicon/*.html", "html"),
    DocSource("rust-doc", "MIT OR Apache-2.0", "rust-doc/html/cargo/**/*.html", "html"),
    DocSource("rust-doc", "MIT OR Apache-2.0", "rust-doc/html/rustc/**/*.html", "html"),
    DocSource("rust-src", "MIT OR Apache-2.0", "../../src/rustc-*/library/core/**/*.rs", "rust"),
    DocSource("rust-src", "MIT OR Apache-2.0", "../../src/rustc-*/library/alloc/**/*.rs", "rust"),
    DocSource("rust-src", "MIT OR Apache-2.0", "../../src/rustc-*/library/std/**/*.rs", "rust"),
)

PACKAGES = Path(__file__).with_name("packages.txt")


def fetch(work: Path) -> None:
    """Install the packages under `work`/site and unpack the Debian documents under `work`/docs."""
    site, docs = work / "site", work / "docs"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--quiet"]
    subprocess.run([*pip, "--target", str(site), "-r", str(PACKAGES)], check=True)
    docs.mkdir(parents=True, exist_ok=True)
    names = sorted({source.package for source in DOCS})
    subprocess.run(["apt-get", "download", *names], check=True, cwd=docs)
    for archive in sorted(docs.glob("*.deb")):
        target = docs / archive.name.split("_")[0]
        subprocess.run(["dpkg", "-x", str(archive), str(target)], check=True)


def licence_of(metadata: str) -> str | None:
    """Return the licence that a wheel's METADATA states, or None unless it is an allowed one."""
    head = metadata.split("\n\n")[0]
    found = re.findall(r"^License-Expression: (.*)", head, re.M)
    found = found or re.findall(r"^Classifier: License :: (?:OSI Approved :: )?(.*)", head, re.M)
    found = found or re.findall(r"^License: (.*)", head, re.M)
    stated = " / ".join(found)
    return stated if ALLOWED.search(stated) and not REFUSED.search(stated) else None


def wheel_files(site: Path) -> dict[str, tuple[str, list[Path]]]:
    """Return each allowed wheel's name with its licence and Python files, tests left out."""
    wheels: dict[str, tuple[str, list[Path]]] = {}
    for info in sorted(site.glob("*.dist-info")):
        metadata = (info / "METADATA").read_text(encoding="utf-8", errors="replace")
        licence = licence_of(metadata)
        if licence is None:
            continue
        name = re.search(r"^Name: (.*)", metadata, re.M)
        record = (info / "RECORD").read_text(encoding="utf-8").split("\n")
        paths = [line.split(",")[0] for line in record if ".py," in line]
        kept = [site / path for path in paths if is_wanted(path)]
        wheels[name.group(1) if name else info.name] = licence, kept
    return wheels


def is_wanted(path: str) -> bool:
    """Return whether a source path is a package's own code: no tests, no vendored copies."""
    return not re.search(
        r"(^|/)(_?vendor(ed)?|_?extern(al)?s?|third_party|thirdparty|tests?|testing|_vendor|compat"
        r"|libs|node_modules|locale|deprecated|pydoc_data|idlelib|lib2to3|turtledemo|site-packages"
        r"|__pycache__|ensurepip)/|(^|/)(test_\w+|conftest|_version|\w*_tables?|\w*unicodedata\w*)"
        r"\.py$|\.\./",
        path,
        re.IGNORECASE,
    )
