"""Robots, tasks and their simulation in MuJoCo."""
