"""`segue/pointmaze-umaze`: a noisy waypoint controller on gymnasium-robotics' PointMaze, sparse reward."""

from __future__ import annotations

from collections import deque

import numpy as np

from segue.data.environments import make_environment
from segue.data.generate import Behaviour

ENVIRONMENT_ID = "PointMaze_UMaze-v3"
ENVIRONMENT_KWARGS = {"continuing_task": False}  # the episode ends with success, reward 1
REFERENCE_SCORES = (0.0, 1.0)  # a return is 1 for success, else 0
POSITION_GAIN = 10.0  # force per metre to the waypoint
VELOCITY_GAIN = 1.0  # braking force per metre a second
NOISE_STD = 0.5  # of the added action noise: enough to spread the data, still nearly always successful


def flatten(observation: dict[str, np.ndarray]) -> np.ndarray:
    """[6]: position, velocity, goal; `achieved_goal` would repeat the position."""
    return np.concatenate([observation["observation"], observation["desired_goal"]])


def waypoint_behaviour() -> Behaviour:
    """A controller that steers through the centres of the cells on the shortest path to the goal, with noise."""
    environment = make_environment(ENVIRONMENT_ID, **ENVIRONMENT_KWARGS)
    maze = environment.unwrapped.maze
    next_cell = next_cells(np.asarray(maze.maze_map, dtype=object) != 1)
    rows, columns = next_cell.shape[:2]
    centres = np.array([[maze.cell_rowcol_to_xy(np.array([r, c])) for c in range(columns)] for r in range(rows)])
    environment.close()
    origin = centres[0, 0]
    pitch = centres[1, 1] - centres[0, 0]  # metres from one cell to the next along (x, y); y falls as rows rise

    def cells(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of each position [E, 2]."""
        column, row = np.rint((positions - origin) / pitch).astype(int).T
        return np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)

    def behave(observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        position, velocity, goal = observations[:, :2], observations[:, 2:4], observations[:, 4:]
        here, there = cells(position), cells(goal)
        step = next_cell[(*here, *there)]  # [E, 2]
        arrived = (here[0] == there[0]) & (here[1] == there[1])
        target = np.where(arrived[:, None], goal, centres[step[:, 0], step[:, 1]])
        wanted = POSITION_GAIN * (target - position) - VELOCITY_GAIN * velocity
        noisy = np.clip(wanted, -1, 1) + NOISE_STD * rng.standard_normal(wanted.shape)
        return np.clip(noisy, -1, 1).astype(np.float32)

    return behave


def next_cells(free: np.ndarray) -> np.ndarray:
    """[R, C, R, C, 2] int: the neighbour to enter next on a shortest path from the first cell to the second.

    `free` is a mask [R, C]. A cell from which the goal cannot be reached points at itself.
    """
    rows, columns = free.shape
    table = np.empty((rows, columns, rows, columns, 2), int)
    table[..., 0] = np.arange(rows)[:, None, None, None]
    table[..., 1] = np.arange(columns)[None, :, None, None]
    for goal in np.argwhere(free):
        seen = {tuple(goal)}
        queue = deque(seen)
        while queue:
            row, column = queue.popleft()
            for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                inside = 0 <= near[0] < rows and 0 <= near[1] < columns
                if inside and free[near] and near not in seen:
                    seen.add(near)
                    table[(*near, *goal)] = (row, column)
                    queue.append(near)
    return table
