//! The whole system on a real cluster: the stories are in `tests/cluster`, `run` starts everything.
