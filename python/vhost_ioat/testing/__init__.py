# SPDX-License-Identifier: BSD-3-Clause
"""Test kit for virtual switches: a model of the split ring, strategies, state machines, fixtures, a raw front end."""
