"""Action access_served: runs the module of the same name and shows its progress."""

from __future__ import annotations

from ansible_collections.roundhouse.llm.plugins.plugin_utils.watched_action import WatchedAction


class ActionModule(WatchedAction):
    """See the module's documentation."""
