#!/usr/bin/env python3
"""Runs test programs that cargo has built, without asking cargo again.

    targets.py BUILT [--beside N] NAME... [-- ARGUMENT...]

BUILT is what `cargo build --message-format=json` printed. Names are `package/target`, where a star stands for
anything and the target is `lib` or `bin-NAME` for unit tests; a name with ! before it leaves out what it fits, and the
last name that fits decides. N programs run at a time (1), each with the ARGUMENTs and in the folder of its package as
with `cargo test`.
With one at a time the output comes as it is written, else whole and in a fixed order.
"""

import concurrent.futures
import fnmatch
import json
import os
import subprocess
import sys
import tempfile


def built(path):
    """Name, folder of the package and file of every test program, by name."""
    found = {}
    with open(path, encoding="utf-8") as messages:
        for message in map(json.loads, messages):
            if message["reason"] != "compiler-artifact" or not message["profile"]["test"]:
                continue
            folder = os.path.dirname(message["manifest_path"])
            target = message["target"]
            # A library and a program of one package may share their name.
            kind = target["kind"][0]
            name = {"lib": "lib", "bin": f"bin-{target['name']}"}.get(kind, target["name"])
            package = message["package_id"].split("#")[-1].split("@")[0]
            if package[0].isdigit():
                package = os.path.basename(message["package_id"].split("#")[0])
            found[f"{package}/{name}"] = (folder, message["executable"])
    return sorted((name, *rest) for name, rest in found.items())


def is_chosen(target, names):
    chosen = False
    for name in names:
        if fnmatch.fnmatch(target, name.removeprefix("!")):
            chosen = not name.startswith("!")
    return chosen


def run(name, folder, program, arguments, output):
    environment = os.environ | {"CARGO_MANIFEST_DIR": folder}
    print(f"\n     Running {name}", file=output, flush=True)
    status = subprocess.run([program, *arguments], cwd=folder, env=environment, stdout=output, stderr=output, check=False).returncode
    if status:
        print(f"error: {name} ended with status {status}", file=output, flush=True)
    return status


def run_apart(target):
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        status = run(*target, output)
        output.seek(0)
        return status, output.read()


def main(path, beside, names, arguments):
    chosen = [(*target, arguments) for target in built(path) if is_chosen(target[0], names)]
    if not chosen:
        print(f"error: no test program is called {' or '.join(names)}")
        return 1
    if beside == 1:
        # All of them, also after one has failed.
        return int(any([run(*target, sys.stdout) for target in chosen]))
    failed = False
    with concurrent.futures.ThreadPoolExecutor(beside) as pool:
        for status, text in pool.map(run_apart, chosen):
            print(text, end="", flush=True)
            failed |= status != 0
    return int(failed)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    at_once = 1
    if "--beside" in arguments:
        at = arguments.index("--beside")
        at_once = int(arguments[at + 1])
        del arguments[at : at + 2]
    passed_on = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, passed_on = arguments[:at], arguments[at + 1 :]
    sys.exit(main(arguments[0], at_once, arguments[1:], passed_on))
