"""The commands; their implementations are imported when they run."""

from __future__ import annotations

from cyclopts import App

from minga import __version__
from minga.cli import audit, checkpoints, config, data, plan, roles, token


def build_app() -> App:
    """Return the command line app; errors and Ctrl-C are raised as exceptions."""
    app = App(
        name="minga",
        help="Asynchronous training of image classifiers on the PCs of a LAN.",
        help_epilogue="Exit status: 0 ok, 1 run failed, 2 usage, 3 unreachable, 4 data, "
        "5 refused, 130 Ctrl-C.",
        version=__version__,
        result_action="return_value",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
    )
    app.command(roles.demo, sort_key=1)
    app.command(roles.ps, sort_key=2)
    app.command(roles.worker, sort_key=3)
    app.command(data.app)
    app.command(checkpoints.evaluate, name="eval", sort_key=5)
    app.command(checkpoints.export, sort_key=6)
    app.command(audit.audit, sort_key=7)
    app.command(config.app)
    app.command(plan.plan, sort_key=8)
    app.command(token.app)
    return app
