"""The cluster by hand: `python -m tests.cluster up | down | status`."""

from __future__ import annotations

import argparse
import sys

from tests.cluster import lifecycle
from tests.cluster.layout import Failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring it up, or leave it as it is where it is up")
    up.add_argument("--only", choices=["api"], help="etcd and the API server alone, on loopback; needs no root")
    up.add_argument("--fsync", action="store_true", help="etcd writes through to the disk, as in production")
    commands.add_parser("down", help="stop it and remove everything but the caches")
    commands.add_parser("status", help="say whether it is up, and where its kubeconfig is")
    arguments = parser.parse_args()
    try:
        if arguments.command == "up":
            print(lifecycle.up_api(fsync=arguments.fsync).kubeconfig)
        elif arguments.command == "down":
            lifecycle.down()
        else:
            show()
    except Failed as failure:
        sys.exit(f"cluster: {failure}")


def show() -> None:
    running = lifecycle.state()
    print(f"{running.mode} {running.kubeconfig}" if running else "down")


if __name__ == "__main__":
    main()
