"""SPAM and Stable-SPAM in someone else's loop: a pole balanced on a cart, learned by PPO.

    python examples/rl_control.py [--seeds N] [--quick] [--json]

The cart-pole of Barto, Sutton and Anderson (1983), many at once in torch; a policy and a value
network trained by PPO (Schulman et al., arXiv:1707.06347). Gradients in reinforcement learning
spike, since what is learned from changes with the policy. The score is the mean number of steps
that the poles stay up over the whole of training (at most 200), so that both learning early and
not falling back count.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time

import torch
from comparing import Arm, arms, as_dict, compare, table
from torch import Tensor, nn

STEPS = 200  # an episode ends after so many, or when the pole falls
RATES = (3e-3, 1e-2, 3e-2)
DISCOUNT, LAMBDA, RATIO, ENTROPY = 0.99, 0.95, 0.2, 0.01
EPOCHS, MINIBATCHES, HORIZON, CARTS = 3, 4, 32, 32


class CartPoles:
    """Carts with poles on a track; one that falls or has balanced for STEPS starts again.

    Attributes:
        state: [N, 4]: position, velocity, angle, its velocity.
        age: steps of the running episodes.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._generator = generator
        self.state = self._start(count)
        self.age = torch.zeros(count)

    def _start(self, count: int) -> Tensor:
        return 0.1 * torch.rand(count, 4, generator=self._generator) - 0.05

    def step(self, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Push every cart left or right.

        Args:
            right: bool [N].

        Returns:
            Which episodes ended by falling, which by reaching STEPS, and all their ages; the
            state is already that of new episodes where one ended.
        """
        _, speed, angle, turning = self.state.unbind(1)
        force = torch.where(right, 10.0, -10.0)
        sin, cos = angle.sin(), angle.cos()
        pushed = (force + 0.05 * turning.square() * sin) / 1.1
        bent = (9.8 * sin - cos * pushed) / (0.5 * (4 / 3 - 0.1 * cos.square() / 1.1))
        moved = pushed - 0.05 * bent * cos / 1.1
        change = torch.stack([speed, moved, turning, bent], 1)
        self.state = self.state + 0.02 * change
        self.age = self.age + 1
        fallen = (self.state[:, 0].abs() > 2.4) | (self.state[:, 2].abs() > math.radians(12))
        done = ~fallen & (self.age >= STEPS)
        ages = self.age.clone()
        over = fallen | done
        self.state = torch.where(over[:, None], self._start(len(over)), self.state)
        self.age = torch.where(over, 0.0, self.age)
        return fallen, done, ages


class Agent(nn.Module):
    """Two small networks: how likely is a push to the right, and what is a state worth?"""

    def __init__(self) -> None:
        super().__init__()
        self.policy = _network()
        self.value = _network()

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logit of a push to the right and the value, [N] each."""
        return self.policy(states).squeeze(-1), self.value(states).squeeze(-1)


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )


def advantages(values: Tensor, fallen: Tensor, over: Tensor) -> Tensor:
    """Generalised advantage estimates for rewards of 1 a step.

    Args:
        values: [T + 1, N] of the states before each step, and of the last.
        fallen: bool [T, N]: nothing comes after.
        over: bool [T, N]: the episode ended, by falling or by its length. What comes after a full
            length is taken to be worth what the state before was.
    """
    running = torch.zeros(values.shape[1])
    found = torch.empty_like(values[:-1])
    for t in reversed(range(len(found))):
        ahead = torch.where(over[t], values[t], values[t + 1]) * (~fallen[t])
        error = 1 + DISCOUNT * ahead - values[t]
        running = error + DISCOUNT * LAMBDA * running * (~over[t])
        found[t] = running
    return found


def train(arm: Arm, lr: float, seed: int, rounds: int) -> float:
    """Train one agent.

    Args:
        arm, lr: the optimizer and its learning rate.
        seed: of the networks, the carts and the actions.
        rounds: of HORIZON steps of CARTS carts, with EPOCHS * MINIBATCHES optimizer steps each.

    Returns:
        Mean steps of an episode, the mean over rounds.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        agent = Agent()
    optimizer = arm.make(agent.parameters(), lr)
    carts = CartPoles(CARTS, generator)
    lengths, last = [], 20.0
    for _ in range(rounds):
        states, actions, fallen, over, ended = _play(agent, carts, generator)
        _learn(arm, optimizer, agent, states, actions, fallen, over, generator)
        # A round in which no episode ended: they are all longer than before.
        last = float(ended.mean()) if len(ended) else float(carts.age.mean().clamp_min(last))
        lengths.append(last)
    return sum(lengths) / len(lengths)


@torch.no_grad()
def _play(
    agent: Agent, carts: CartPoles, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return states [T + 1, N, 4], actions, falls, ends [T, N] and lengths of ended episodes."""
    states, actions, fallen, over, ended = [], [], [], [], []
    for _ in range(HORIZON):
        states.append(carts.state)
        chance = torch.rand(CARTS, generator=generator)
        actions.append(chance < agent(carts.state)[0].sigmoid())
        fell, done, ages = carts.step(actions[-1])
        fallen.append(fell)
        over.append(fell | done)
        ended.append(ages[over[-1]])
    states.append(carts.state)
    parts = (torch.stack(part) for part in (states, actions, fallen, over))
    return (*parts, torch.cat(ended))  # type: ignore[return-value]


def _learn(
    arm: Arm,
    optimizer: torch.optim.Optimizer,
    agent: Agent,
    states: Tensor,
    actions: Tensor,
    fallen: Tensor,
    over: Tensor,
    generator: torch.Generator,
) -> None:
    """Take PPO's steps on one round."""
    with torch.no_grad():
        logits, values = agent(states)
        gains = advantages(values, fallen, over)
        targets = (gains + values[:-1]).flatten()
        sign = actions.float().flatten() * 2 - 1
        before = nn.functional.logsigmoid(sign * logits[:-1].flatten())
        gains = gains.flatten()
        gains = (gains - gains.mean()) / (gains.std() + 1e-8)
        seen = states[:-1].flatten(0, 1)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(seen), generator=generator).chunk(MINIBATCHES):
            logit, value = agent(seen[rows])
            ratio = (nn.functional.logsigmoid(sign[rows] * logit) - before[rows]).exp()
            gain = gains[rows]
            surrogate = torch.min(ratio * gain, ratio.clamp(1 - RATIO, 1 + RATIO) * gain)
            entropy = nn.functional.binary_cross_entropy_with_logits(logit, logit.sigmoid())
            error = (value - targets[rows]).square().mean()
            arm.step(optimizer, -surrogate.mean() + 0.5 * error - ENTROPY * entropy)


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description="Cart-pole by PPO under four optimizers.")
    parser.add_argument("--seeds", type=int, default=5, help="seeds that are reported")
    parser.add_argument("--rounds", type=int, default=60, help="rounds of play and learning")
    parser.add_argument("--rates", help="learning rates to choose from, with commas")
    parser.add_argument("--quick", action="store_true", help="2 seeds of 6 rounds, one rate")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rounds, seeds = given.rounds, given.seeds
    rates = tuple(map(float, given.rates.split(","))) if given.rates else RATES
    if given.quick:
        rounds, seeds, rates = 6, 2, RATES[:1]
    started = time.process_time()
    rows = compare(
        arms(reset_every=rounds * EPOCHS * MINIBATCHES // 6),
        rates,
        lambda arm, lr, seed: train(arm, lr, seed, rounds),
        seeds=seeds,
        tuning_seeds=1 if given.quick else 2,
        higher_is_better=True,
        say=lambda text: print(text, file=sys.stderr),
    )
    if given.json:
        print(json.dumps({"task": "cart-pole", "rounds": rounds, "rows": as_dict(rows)}))
        return
    title = f"cart-pole, steps balanced, mean over training (at most {STEPS}; more is better)"
    print(table(title, rows, digits=1))
    print(f"{seeds} seeds, {rounds} rounds; {time.process_time() - started:.0f} s of CPU time")


if __name__ == "__main__":
    main()
