"""List experts, check them against a detector, print which one answers a query, remove one.

    ovd experts list runs/mine_expert runs/other
    ovd experts check runs/quickstart runs/mine_expert runs/other
    ovd experts who runs/quickstart runs/mine_expert --classes "my thing, umbrella, parasol"
    ovd experts remove runs/mine_expert

Experts are made by `ovd fine-tune`. An expert is used by giving its folder (--expert of detect, label, serve, eval and
label-pairs, `experts` of Predictor.load). Nothing has to be registered, and adding or removing an expert changes no
other's answers.
"""

import argparse
from pathlib import Path

from ovd.files import refuse_missing_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="print the names that experts know and the detector that they belong to")
    listing.add_argument("experts", type=Path, nargs="+", help="expert folders, or the runs that they are in")
    check = commands.add_parser("check", help="check that experts are undamaged and belong to a detector")
    check.add_argument("run", type=Path, help="run or checkpoint folder of the detector")
    check.add_argument("experts", type=Path, nargs="+", help="expert folders, or the runs that they are in")
    who = commands.add_parser("who", help="print whether the detector or an expert answers a query")
    who.add_argument("run", type=Path, help="run or checkpoint folder of the detector")
    who.add_argument("experts", type=Path, nargs="+", help="expert folders, or the runs that they are in")
    who.add_argument("--classes", required=True, help="comma-separated queries")
    remove = commands.add_parser("remove", help="remove an expert's files; the run that made it stays")
    remove.add_argument("expert", type=Path, help="expert folder, or the run that it is in")
    arguments = parser.parse_args()
    if arguments.command in ("check", "who"):
        refuse_missing_run(arguments.run)
    from ovd.jobs.experts import check_expert, describe_expert, format_routing, remove_expert
    from ovd.jobs.queries import read_queries

    if arguments.command == "list":
        for folder in arguments.experts:
            print(describe_expert(folder))
    elif arguments.command == "check":
        for folder in arguments.experts:
            check_expert(arguments.run, folder)
            print(f"{folder}: undamaged, an expert of {arguments.run}")
    elif arguments.command == "who":
        names = [query.name for query in read_queries(arguments.classes)]
        print(format_routing(arguments.run, arguments.experts, names))
    else:
        print(f"removed {remove_expert(arguments.expert)}")
