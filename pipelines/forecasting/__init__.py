"""A ladder of small trainings, and what they say of large ones: `omniloom forecast`. In the order of reading: `config`,
`rungs` (which trainings), `seen` (what came out), `laws` (curves through it), `choosing` (what a budget buys),
`command`."""
