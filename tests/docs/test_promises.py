"""What README, docs and public docstrings promise without exception has a test, or is no promise, and why is said."""

import ast

from tests.docs.promises import ROOT, promises, sentences

# The beginning of a sentence, and the tests that would fail if it were not so.
KEPT = {
    "an element is finite and too large to be squared": ("a_finite_gradient_that_cannot_be_squared_is_a_bad_step",),
    "Every process answers alike and in time": ("every_process_answers_alike_and_in_time",),
    "See, tame and survive": ("records_come_at_the_interval_and_fold_the_steps_between", "with_a_nan_batch"),
    "And without Lightning, in a plain loop": ("the_plain_loop_runs_where_lightning_cannot_be_imported",),
    "`LIGHTNING_GRADGUARD=1 python train.py` watches": ("when_it_is_set_a_trainer_that_lists_nothing_is_watched",),
    "`LIGHTNING_GRADGUARD='{": ("what_acts_steps_aside_where_it_cannot_be_kept_and_says_so_once",),
    "What a policy remembers is in the checkpoint": ("resume_is_bit_exact",),
    "Watching changes nothing: a watched run": ("watching_changes_no_bit",),
    "Watching changes nothing: weights are": ("watching_changes_no_bit",),
    "It is then never worse guarded": ("the_ceiling_holds_from_the_first_step",),
    "Statistics are always made of pre-clip": ("a_policy_gives_the_numbers_of_its_twin",),
    "Finite values only.": ("nothing_that_is_not_finite_enters_the_state",),
    "A norm that overflowed although every element": ("a_finite_gradient_whose_norm_overflows_keeps_its_direction",),
    "Choose it** as an AutoClip that remembers": ("a_policy_gives_the_numbers_of_its_twin",),
    "A zero gradient is never learned": ("a_zero_gradient_in_the_first_step_does_not_freeze_the_training",),
    "A step whose norm overflowed though every": ("a_second_look_is_right_where_float32_over_or_underflows",),
    "Sampled are the steps 0, 1, 2, 4, 8": ("sampled_steps_are_powers_of_two_and_then_every_nth",),
    "A layer that requires a gradient never gets one": ("a_cut_graph_is_named_with_its_remedy_and_told_at_the_end",),
    "In some module 60 % of the units": ("a_unit_is_dead_when_silent_in_every_batch_not_in_one",),
    "In some module most units were silent": ("a_unit_is_dead_when_silent_in_every_batch_not_in_one",),
    "Counted per unit over sampled batches": ("a_unit_is_dead_when_silent_in_every_batch_not_in_one",),
    "DDP's gradients are equal": ("under_ddp_a_step_costs_no_all_reduce_since_gradients_are_equal",),
    "Gradients are already reduced under DDP": ("under_ddp_a_nan_on_one_rank_leaves_all_with_the_same_weights",),
    "Buffers that are not finite when training starts": ("a_mask_of_minus_infinity_is_no_damage",),
    "the loss is NaN although every gradient": ("is_dropped_named_and_counted_by_default",),
    "It is never meant, so it is on": ("an_infinite_loss_with_finite_gradients_is_left_alone",),
    "Data that hold NaN on purpose": ("raise_and_patience_let_the_models_own_error_through_with_a_note",),
    "drop_nan_loss: whether a step": ("can_be_let_through_and_is_counted_then",),
    '``"loss"``: the loss was NaN': ("is_dropped_named_and_counted_by_default",),
    "Dropped* means that every": ("would_move_weights_and_state_if_gradients_were_zeroed_instead",),
    "A **snapshot** holds parameters": ("a_snapshot_brings_back_weights_buffers_and_optimizer_state_bit_for_bit",),
    "`hold_lr_on_skip=True` holds those": (
        "wait_where_it_is_asked_for",
        "wait_for_steps_that_the_loss_scaler_drops_too",
    ),
    "Checkpoints.** While the guard is on": (
        "ends_training_in_order_and_no_checkpoint_holds_a_nan",
        "names_step_optimizer_and_layers_and_a_checkpoint_on_exception_is_finite",
        "then_a_rollback_comes_before_the_checkpoint",
    ),
    "Nothing of that stays in the run": ("locating_and_saving_change_nothing_in_the_run",),
    "It is written under another name": ("a_disk_that_takes_no_more_leaves_nothing_behind_and_stops_nothing",),
    "A replay is exact to the bit": ("a_fresh_process_reproduces_the_step_bit_for_bit",),
    "Where the middle of gradient ÷ weight": ("every_statistic_with_every_meaning_of_the_middle_is_drawn",),
    "Black (white in the dark theme)": ("nan_and_zero_are_no_colour_of_the_ramp",),
    "A run that trains is followed": ("a_run_that_trains_grows_before_the_eyes",),
    "What lies on a device stays there": ("watching_and_clipping_read_nothing_on_the_host",),
    "Every record holds the total norm of": ("every_step_is_in_a_record_dropped_ones_too",),
    "On a run that was not clipped their thresholds": (
        "thresholds_equal_those_of_a_live_run_that_is_only_watched_to_the_bit",
    ),
    "They answer as they would have in that run": (
        "thresholds_equal_those_of_a_live_run_that_is_only_watched_to_the_bit",
    ),
    "dry_run: whether the policy decides": ("every_bit_is_that_of_an_unwatched_run_and_the_real_thing_differs",),
    "Looks at no activation function from now on": (
        "a_mode_that_is_not_on_top_is_left_on_the_stack_and_looks_no_more",
    ),
    "Shows one record to every rule": ("weight_norms_are_filled_in_from_the_last_record_that_has_them",),
    "All three roles at once": ("records_come_at_the_interval_and_fold_the_steps_between", "with_a_nan_batch"),
    "Shows the gradient norm of every layer": (
        "several_loggers_get_the_same",
        "with_several_optimizers_every_tag_says_which",
    ),
    "Every optimizer step is measured": ("records_come_at_the_interval_and_fold_the_steps_between",),
    "patience: bad steps in a row": (
        "patience_raises_after_so_many_in_a_row",
        "patience_ends_a_run_that_does_not_recover",
    ),
    "log_every_n_steps: how often": ("a_bad_step_makes_a_record_at_once_and_is_counted",),
    "judge: what drops bad steps": ("without_a_guard_every_step_passes",),
    "log: whether a step that goes well": ("records_come_at_the_interval_and_fold_the_steps_between",),
    "Ends every view, and says which": ("a_policy_for_a_group_that_never_comes_is_named_at_the_end",),
    "A frozen one is listed": ("a_frozen_layer_has_no_norm_until_it_is_unfrozen",),
    '``"skip"`` drops the step': ("a_dropped_step_has_no_gradients_left_and_its_buffers_are_those_of_the_step_before",),
    "hold_lr_on_skip: whether schedulers": ("wait_where_it_is_asked_for",),
    "MisconfigurationException: when fit starts": ("optimizers_whose_step_cannot_be_dropped_half_way_are_refused",),
    "It needs no history, moves by at most": ("a_policy_gives_the_numbers_of_its_twin",),
    "exact: whether every gradient": ("a_fresh_process_reproduces_the_step_bit_for_bit",),
    "Called on logged steps and on every": ("a_bad_step_makes_a_record_at_once_and_is_counted",),
    "Here the last output h_T": ("a_linear_recurrence_gives_the_powers_of_its_matrix",),
    "A write that fails (full disk": (
        "a_full_disk_costs_the_record_with_a_warning_and_never_the_run",
        "a_run_that_logs_nothing_goes_to_its_end_on_a_full_disk",
    ),
    "writer: a ``SummaryWriter``; or": ("a_writer_that_was_closed_and_opened_again_gets_the_layer_names_again",),
    "Keeps every element of the gradient": ("an_element_a_little_beyond_the_bound_ends_below_one_at_it",),
    "A step within 1.5 times the limit": ("the_papers_statistics_lock_in_after_a_rise_and_ours_do_not",),
    "BundleError: if the bundle": ("a_bundle_that_is_not_sound_gets_a_clear_error_and_runs_nothing",),
    "A tensor that is wild as a whole": ("a_tensor_that_is_wild_as_a_whole_comes_down_to_about_its_usual_norm",),
    "Returns the units of every parameter": ("a_policy_gives_the_numbers_of_its_twin",),
    "Takes every hook off": ("the_hooks_leave_no_graph_behind",),
    "Warns if every parameter is excluded": ("a_knob_that_is_wrong_or_turns_nothing_is_refused",),
    "After one that clamps elements": ("a_policy_sees_units_and_elements_as_the_ones_before_leave_them",),
    "The results agree to float32 rounding": ("a_policy_gives_the_numbers_of_its_twin",),
    "Its results agree to float32 rounding": ("a_policy_gives_the_numbers_of_its_twin",),
    "Every run, the step at which": ("the_pages_are_those_of_the_recorded_results",),
    "The Trainer clips before it calls": (
        "watching_changes_no_bit_and_sees_the_gradient_before_it_is_clipped",
        "a_step_that_is_not_finite_moves_no_weight",
    ),
    "Where a part cannot be looked into": ("a_part_that_cannot_be_looked_into_is_named_where_it_may_be_the_cause",),
    "bundle, module or arguments cannot": (
        "a_bundle_that_is_not_sound_gets_a_clear_error_and_runs_nothing",
        "a_factory_that_cannot_be_used_ends_with_status_two",
        "bad_arguments_end_with_status_two",
    ),
    "Samples that do it only together": (
        "samples_that_do_it_only_together_are_named_together",
        "where_every_sample_does_it_the_fault_is_elsewhere",
    ),
    "Beside them the tensor of the tab holds": ("every_steps_norm_is_read_back_however_many_records_there_are",),
    "`keep_records=False` turns it off": ("it_can_be_had_elsewhere_or_not_at_all",),
    "No gradient anywhere is no step": (
        "a_step_without_any_gradient_is_no_step",
        "a_silent_fault_is_said_by_step_64_and_its_cause_first",
    ),
    "Persistence is not its business": (
        "a_finding_is_raised_once_after_it_has_held_three_times_in_a_row",
        "a_resumed_diagnosis_finds_bit_for_bit_what_it_would_have_found",
        "severity_is_earned_a_fact_is_info_while_the_loss_falls_and_critical_when_it_rises",
    ),
    "tallies: whether it counts on": ("bad_batches_are_counted_on_with_the_batches_that_come_back",),
    "Unit by unit AGC reads": ("one_pass_measures_tensors_and_their_units",),
}

# Sentences with such a word that promise nothing of ours: what they are instead.
NO_PROMISE = {
    "What it can and cannot say": "a headline",
    "Not for the GAN, where it keeps": "a recorded figure, with its spread",
    "[my training is sick": "links",
    "everything on": "a row of a table that is recorded",
    "some unit in nearly every": "a recorded figure",
    "a few elements of every": "a recorded figure",
    "One network, one seed": "how a figure was made",
    "AGC has to see every layer here": "a recorded figure, with its spread",
    "It is a weak guard": "what the method is",
    "In the table behind the figure": "a recorded figure",
    "Name the dtype of each tensor": "a fact about float16",
    "``torch.zeros(())`` without ``dtype``": "a fact about float16",
    "The same runs were shown to published": "how a figure was made",
    "NaN batch**: one row of every": "how a figure was made",
    "There were 32 backward passes": "when a rule fires; each rule has a sick and a healthy run",
    "There were many backward passes": "when a rule fires",
    "The learning rate of every layer is": "when a rule fires",
    "layers that never ran, a copy": "when a rule stays silent",
    "A gradient may also be there and exactly": "when a rule fires",
    "That is reported of a part of several": "when a rule fires",
    "what is back-propagated is the negative": "when a rule fires",
    "Asked where there are exactly two": "when a rule is asked",
    "Speaks of the largest ||change||": "when a rule fires",
    "Nearly every step is clipped": "when a rule fires; each rule has a sick and a healthy run",
    "Parameters are shared over time": "why a rule looks elsewhere",
    "A layer takes part in the graph": "when a rule fires",
    "Reads the temporal probe": "why a rule looks elsewhere",
    "Weights of a recurrent module": "why a probe looks elsewhere",
    "Watching every layer at every step, with": "an aim",
    "Writing every layer at every step": "a heading",
    "Why clipping every step is not": "a heading",
    "All workloads run at learning rate 0": "how a figure was made",
    "Then look at what they cannot tell": "advice",
    "For those who cannot have the tab": "who it is for",
    "``None``: never": "what an argument means",
    "Gradients are unscaled through it": "how a scaler is used",
    "``None`` where": "when a value is unknown",
    '``"64×32 + 64"``': "an example",
    "prefix: put before every tag": "what an argument means",
    "What people freeze on purpose": "when a rule stays silent",
    "a layer's weights are all zero": "when a rule fires",
}


def starts(sentence: str, beginnings: dict) -> bool:
    return any(sentence.startswith(beginning) for beginning in beginnings)


def test_every_promise_has_a_test_or_is_known_to_be_none():
    open_ones = [f"{where}: {s}" for where, s in promises() if not starts(s, KEPT) and not starts(s, NO_PROMISE)]
    assert not open_ones, (
        "add the tests that keep it to KEPT, say why it is none in NO_PROMISE, or take it out:\n" + "\n".join(open_ones)
    )


def test_the_tests_that_keep_them_exist():
    tests = {
        node.name.removeprefix("test_")
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert {name for names in KEPT.values() for name in names} <= tests


def test_no_entry_outlives_its_sentence():
    found = [sentence for _, sentence in promises()]
    assert [b for b in (*KEPT, *NO_PROMISE) if not any(s.startswith(b) for s in found)] == []


def test_a_promise_is_found_in_prose_and_not_in_code():
    code = "```bash\nnever mind what is written here\n```"
    text = f"It never moves a single weight, whatever comes. Fine.\n\n{code}\n\nAlways `so`."
    assert list(sentences(text)) == ["It never moves a single weight, whatever comes."]
