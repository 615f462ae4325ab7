"""The cluster by hand: `python -m tests.cluster up | image | down | status | check-clean`."""

from __future__ import annotations

import argparse
import sys

from tests.cluster import addons, images, lifecycle, node
from tests.cluster.layout import Failed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring it up, or leave it as it is where it is up")
    up.add_argument("--only", choices=["api"], help="etcd and the API server alone, on loopback; needs no root")
    up.add_argument("--fsync", action="store_true", help="etcd writes through to the disk, as in production")
    up.add_argument("--with", dest="extra", action="append", default=[], choices=[*addons.ASKED, "image"])
    commands.add_parser("build", help="build every program and image that `up` may need, and start nothing")
    commands.add_parser("image", help="build the trainer's image from this checkout and push it; print its name")
    commands.add_parser("check-clean", help="fail when a cluster that is down has left something")
    commands.add_parser("down", help="stop it and remove everything but the caches")
    commands.add_parser("status", help="say whether it is up, and where its kubeconfig is")
    arguments = parser.parse_args()
    try:
        if arguments.command == "up":
            print(bring_up(arguments).kubeconfig)
        elif arguments.command == "build":
            lifecycle.build()
        elif arguments.command == "image":
            print(image())
        elif arguments.command == "check-clean":
            if left := node.leftovers():
                sys.exit("\n".join(left))
        elif arguments.command == "down":
            lifecycle.down()
        else:
            show()
    except Failed as failure:
        sys.exit(f"cluster: {failure}")


def bring_up(arguments: argparse.Namespace) -> lifecycle.State:
    if arguments.only:
        return lifecycle.up_api(fsync=arguments.fsync)
    known = lifecycle.up(extra=[name for name in arguments.extra if name != "image"], fsync=arguments.fsync)
    if "image" in arguments.extra:
        image()
    return known


def image() -> str:
    reference = images.trainer()
    lifecycle.note_image(reference)
    return reference


def show() -> None:
    running = lifecycle.state()
    print(f"{running.mode} {running.kubeconfig}" if running else "down")


if __name__ == "__main__":
    main()
