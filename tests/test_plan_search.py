"""`reval plan --search` and the advice for configs that do not fit."""

from __future__ import annotations

from support import fake_pods, hf_checkpoints

from reval_jax import weights
from reval_jax.tools.plan import advice, memory, search


def run_search(fits, capacity=10 * fake_pods.GIB, **sections):
    """The result of the search, with `fits(config, phase)` in place of the compiler, and every query that it made."""
    queries = []

    def answer(config, phase):
        queries.append((config, phase))
        return fits(config, phase)

    best = search.find(
        fake_pods.BIG, fake_pods.fake_pod(capacity), fake_pods.search_settings(**sections), answer, lambda _: None
    )
    return best, queries


def test_candidates_come_fastest_first_and_none_twice():
    pod, config = fake_pods.fake_pod(), fake_pods.search_settings()
    candidates = search.learner_candidates(fake_pods.BIG, pod, config)
    assert [each.seconds for each in candidates] == sorted(each.seconds for each in candidates)
    tried = [(each.config.model.remat, each.config.update.micro_batch_tokens) for each in candidates]
    assert len(set(tried)) == len(tried) == 4 * 4  # 1, 2, 4 and 8 of a device's 8 rows, at four remats
    assert {tokens for _, tokens in tried} == {512, 1024, 2048, 4096}


def test_the_search_takes_the_fastest_that_fits():
    def fits(config, phase):
        limit = {"full": 2048, "attention": 1024, "dots": 512, "none": 0}[config.model.remat]
        return phase != "update" or config.update.micro_batch_tokens <= limit

    best, queries = run_search(fits)
    assert fits(best, "update")
    faster = [
        each.config
        for each in search.learner_candidates(
            fake_pods.BIG,
            fake_pods.fake_pod(),
            search.replace(fake_pods.search_settings(), "mesh.tensor", best.mesh.tensor),
        )
    ]
    before = faster[: faster.index(search.replace(best, "rollout.decode_slots", 64))]
    assert not any(fits(config, "update") for config in before)
    assert best.update.micro_batch_tokens in (512, 1024, 2048)
    assert len([phase for _, phase in queries if phase == "update"]) < len(faster)


def test_candidates_that_need_at_least_as_much_as_a_failed_one_are_not_compiled():
    _, queries = run_search(lambda config, phase: phase != "update")
    tried = [config for config, phase in queries if phase == "update"]
    for index, config in enumerate(tried):
        assert not any(
            search._needs_at_least_as_much(config, other) and config.mesh == other.mesh for other in tried[:index]
        )


def test_slots_are_halved_only_for_generation():
    best, queries = run_search(lambda config, phase: phase != "generate" or config.rollout.decode_slots <= 16)
    assert best.rollout.decode_slots == 16
    assert [config.rollout.decode_slots for config, phase in queries if phase == "generate"] == [64, 32, 16]
    assert len([phase for _, phase in queries if phase == "update"]) == 1


def test_another_tensor_is_chosen_if_only_that_fits():
    best, _ = run_search(lambda config, phase: phase != "sync_weights" or config.mesh.tensor == 4)
    assert best.mesh.tensor == 4
    best, queries = run_search(lambda config, phase: config.mesh.tensor == 4, mesh={"fsdp": 8})
    assert best is None
    assert {config.mesh.tensor for config, _ in queries} == {1}


def test_candidates_that_shapes_rule_out_are_not_compiled():
    best, queries = run_search(lambda config, phase: True, capacity=2**20)
    assert best is None
    assert queries == []


def test_sizes_of_tensor_divide_the_chips_and_the_heads():
    pod = fake_pods.fake_pod()
    nine = hf_checkpoints.tiny_architecture(num_heads=9, num_kv_heads=3)
    assert search.tensors(nine, pod, fake_pods.search_settings()) == [1]
    assert search.tensors(fake_pods.BIG, pod, fake_pods.search_settings(mesh={"tensor": 2})) == [2, 1, 4, 8]


# --- advice ----------------------------------------------------------------------------------------------------------


def advise(config, phase, capacity=10 * fake_pods.GIB, architecture=fake_pods.BIG, **kinds):
    """The advice for a phase whose bytes are the lower bounds, except for `kinds`."""
    pod = fake_pods.fake_pod(capacity)
    known = {each.name: each for each in memory.lower_bounds(architecture, pod, config)}[phase]
    full = memory.Phase(phase, known.kinds | kinds, is_compiled=True)
    return advice.advise(architecture, pod, config, [full])


def test_advice_names_the_setting_and_a_value():
    much = {"temporaries": 20 * fake_pods.GIB}
    config = fake_pods.search_settings(update={"micro_batch_tokens": 2048})
    assert "--update.micro_batch_tokens 1024" in advise(config, "update", temporaries=15 * fake_pods.GIB)
    assert "--update.micro_batch_tokens 512" in advise(config, "update", **much)
    assert "--model.remat full" in advise(fake_pods.search_settings(), "update", **much)
    assert "--model.remat full" in advise(fake_pods.search_settings(model={"remat": "attention"}), "update", **much)
    on_devices = fake_pods.search_settings(update={"reference_memory": "device"})
    assert "--update.reference_memory host" in advise(on_devices, "update", **much)
    assert advise(fake_pods.search_settings(), "update") == ""


def test_advice_for_the_sampler_gives_a_value_that_may_fit():
    config = fake_pods.search_settings()
    pod = fake_pods.fake_pod()
    generate = {each.name: each for each in memory.lower_bounds(fake_pods.BIG, pod, config)}["generate"]
    advice_text = advise(config, "generate", capacity=generate.total - 1)
    assert advice_text == "generate: decode fewer responses at once: set --rollout.decode_slots 32"
    sync_weights = {each.name: each for each in memory.lower_bounds(fake_pods.BIG, pod, config)}["sync_weights"]
    advice_text = advise(config, "sync_weights", capacity=sync_weights.total - 1)
    assert "--mesh.tensor 2" in advice_text


def test_advice_for_a_state_that_is_too_large_is_a_larger_slice():
    seven = weights.published.architecture("Qwen/Qwen2.5-Math-7B")
    config = fake_pods.search_settings(model={"remat": "full"}, mesh={"tensor": 4})
    assert "--topology v5e-16 (16 chips)" in advise(
        config, "update", capacity=int(15.75 * fake_pods.GIB), architecture=seven, temporaries=3 * fake_pods.GIB
    )
