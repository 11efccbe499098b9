"""Programs to start from: `python -m tww_ros.node.examples.look_and_go "red toolbox"`."""
