import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpilot.errors import StateError
from dpilot.states import COMPUTE_UNIT, DATA_UNIT, FINAL, PILOT, SERVICE, Lifecycle, State, Transition

TABLES = {"compute unit": COMPUTE_UNIT, "data unit": DATA_UNIT, "pilot": PILOT, "service": SERVICE}
tables = st.sampled_from(list(TABLES.values()))


@pytest.mark.parametrize("state", State)
def test_states_are_strings(state):
    assert state == state.name == str(state) == f"{state}"
    assert {state: 1}[state.name] == 1
    assert State(state.name) is state
    assert pickle.loads(pickle.dumps(state)) is state


def test_final_states():
    assert {state for state in State if state.is_final} == FINAL == {"Done", "Failed", "Canceled"}


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_table_is_sound(table):
    reached, todo = set(), {State.New}
    while todo:
        state = todo.pop()
        reached.add(state)
        todo |= table[state] - reached
    assert reached >= {State.New, State.Done, State.Failed, State.Canceled, State.Unknown}
    for state in reached:
        assert State.New not in table[state], "nothing becomes new again"
        if state.is_final:
            assert table[state] == frozenset()
        else:
            assert table[state] >= {State.Failed, State.Canceled}, "everything unfinished can fail and be canceled"


@pytest.mark.parametrize(
    ("table", "walk"),
    [
        (COMPUTE_UNIT, "Pending Staging Running Staging Done"),
        (COMPUTE_UNIT, "Pending Running Pending Running Done"),
        (COMPUTE_UNIT, "Pending Running Unknown Done"),
        (COMPUTE_UNIT, "Canceled"),
        (DATA_UNIT, "Pending Staging Running Staging Running Pending Failed"),
        (PILOT, "Pending Running Done"),
        (SERVICE, "Running Done"),
    ],
)
def test_walks_that_happen(table, walk):
    life = Lifecycle(table, 0.0)
    for time, state in enumerate(walk.split(), 1):
        assert life.advance(State(state), float(time))
    assert [row.state for row in life.history] == ["New", *walk.split()]
    assert [row.timestamp for row in life.history] == [float(n) for n in range(len(walk.split()) + 1)]


@pytest.mark.parametrize(
    ("table", "walk", "wrong"),
    [
        (COMPUTE_UNIT, "", "Running"),
        (COMPUTE_UNIT, "Pending Done", "Running"),
        (DATA_UNIT, "Pending", "Done"),
        (PILOT, "Pending", "Staging"),
        (SERVICE, "Running", "Pending"),
    ],
)
def test_a_step_that_the_table_lacks_is_refused_and_changes_nothing(table, walk, wrong):
    life = Lifecycle(table, 0.0)
    for state in walk.split():
        life.advance(State(state), 1.0)
    before = life.state, list(life.history)
    with pytest.raises(StateError, match=f"{life.state} cannot be followed by {wrong}"):
        life.advance(State(wrong), 2.0)
    assert (life.state, life.history) == before


def test_the_refusal_of_a_final_state_says_that_it_is_final():
    life = Lifecycle(PILOT, 0.0)
    life.advance(State.Canceled, 1.0)
    with pytest.raises(StateError, match="it is final"):
        life.advance(State.Running, 2.0)


@given(tables, st.lists(st.sampled_from(list(State)), max_size=20))
def test_a_history_never_leaves_its_table(table, steps):
    life = Lifecycle(table, 0.0)
    for time, state in enumerate(steps, 1):
        present = life.state
        try:
            assert life.advance(state, float(time)) is (state is not present)
        except StateError:
            assert life.state is present
    assert life.history[0] == Transition(State.New, 0.0)
    assert life.history[-1].state is life.state
    assert all(
        after.state in table[before.state] for before, after in zip(life.history, life.history[1:], strict=False)
    )


@given(tables, st.lists(st.sampled_from(State), max_size=8))
def test_another_life_of_the_same_object_takes_its_history_over(table, steps):
    life, other = Lifecycle(table, 0.0), Lifecycle(table, 5.0)
    for at, state in enumerate(steps, 1):
        try:
            life.advance(state, float(at))
        except StateError:
            continue
    other.restore(life.history)
    assert (other.history, other.state, other.since, other.made, other.before) == (
        life.history,
        life.state,
        life.since,
        life.made,
        life.before,
    )
