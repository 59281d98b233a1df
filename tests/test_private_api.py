"""Private API of torch, diffusers, accelerate and peft: each test fails when what it names is gone or means something else."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.hooks import apply_group_offloading
from models import pipeline, run, unet
from torch import nn

from fastdiff_lab.hooks import private_api
from fastdiff_lab.hooks.private_api import (
    CALL_SLOT,
    LORA_STATE,
    PROGRESS_BAR,
    SETTINGS_OF_FILES,
    CacheMixin,
    GatedSelfAttentionDense,
    MultiControlNetUnionModel,
    TorchDispatchMode,
    call_of,
    execution_device_of,
    forward_hooks,
    frames_of_threads,
    free_init_of,
    global_forward_hooks,
    guidance_scale_of,
    hook_tables,
    is_compiled_whole,
    move_towards,
    num_time_steps_of,
    part_tables,
    submodule,
    sum_of_write_counts,
    take_off_offloading,
    tree_leaves,
    unwrapped,
    weights_elsewhere,
    write_count,
)

PACKAGE = Path(private_api.__file__).parent.parent
ONE = torch.ones(1, 2)


def layer() -> nn.Linear:
    return nn.Linear(2, 2).requires_grad_(False)


# ---- torch


def test_each_thread_has_its_frame():
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    frame, names = frames_of_threads()[thread.ident], []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    go_on.set()
    thread.join()
    assert names[-1] == "_bootstrap"


def test_a_module_calls_what_is_in_its_slot():
    module = layer()
    assert call_of(module) == module._call_impl
    setattr(module, CALL_SLOT, lambda given: given + 1)
    assert torch.equal(module(ONE), ONE + 1) and call_of(module)(ONE) is not None
    delattr(module, CALL_SLOT)
    assert module(ONE).shape == (1, 2)


def test_compiling_in_place_fills_that_slot():
    module = layer()
    module.compile(backend="eager")
    assert CALL_SLOT in vars(module) and not is_compiled_whole(module)


def test_a_wrapper_of_torch_compile():
    module = layer()
    compiled = torch.compile(module, backend="eager")
    assert is_compiled_whole(compiled) and not is_compiled_whole(module)
    assert unwrapped(compiled) is module and unwrapped(module) is module


def test_hooks_stand_in_their_tables():
    module = layer()
    module.register_forward_pre_hook(before := lambda module, args: None)
    module.register_forward_hook(after := lambda module, args, output: None)
    module.register_full_backward_hook(lambda module, above, below: None)
    assert forward_hooks(module) == [before, after]
    assert [len(table) for table in hook_tables(module)] == [1, 1, 1]
    hook_tables(module)[1].clear()
    assert forward_hooks(module) == [before]


def test_hooks_of_all_modules_stand_in_their_tables():
    before, after = (lambda module, args: None), (lambda module, args, output: None)
    handles = [nn.modules.module.register_module_forward_hook(after), nn.modules.module.register_module_forward_pre_hook(before)]
    assert global_forward_hooks() == [before, after]
    for handle in handles:
        handle.remove()
    assert global_forward_hooks() == []


def test_children_and_weights_stand_in_their_tables():
    module = nn.Sequential(nn.Linear(1, 1, bias=False))
    assert part_tables(module) == ({"0": module[0]}, {})
    assert part_tables(module[0]) == ({}, {"weight": module[0].weight, "bias": None})


def test_children_are_found_without_asking_for_an_attribute():
    module = nn.Sequential(layer())
    assert submodule(module, "0") is module[0] and submodule(module, "1") is None


def test_writes_in_place_are_counted_outside_of_inference_mode():
    tensor = torch.zeros(2)
    before = write_count(tensor)
    tensor.add_(1)
    assert write_count(tensor) == before + 1
    with torch.inference_mode():
        assert write_count(torch.zeros(2)) is None


def test_writes_to_weights_are_counted_together():
    weights = [torch.zeros(2), torch.zeros(3)]
    before = sum_of_write_counts(weights)
    for weight in weights:
        weight.add_(1)
    assert sum_of_write_counts(weights) == before + 2


def test_weights_are_moved_in_place():
    here, there = [torch.zeros(2), torch.ones(3)], [torch.ones(2), torch.zeros(3)]
    move_towards(iter(here), iter(there), 0.25)
    assert torch.equal(here[0], torch.full((2,), 0.25)) and torch.equal(here[1], torch.full((3,), 0.75))


def test_tensors_in_containers_and_operations_are_seen():
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found.append(func)
            return func(*args, **(kwargs or {}))

    found: list = []
    with Seen():
        ONE + 1
    assert found == [torch.ops.aten.add.Tensor]
    assert tree_leaves({"a": [ONE, (2,)]})[0] is ONE


# ---- diffusers


def test_classes_that_are_not_exported():
    assert (
        issubclass(UNet2DConditionModel, nn.Module) and CacheMixin.enable_cache and not issubclass(UNet2DConditionModel, CacheMixin)
    )
    assert GatedSelfAttentionDense(query_dim=4, context_dim=4, n_heads=1, d_head=4).enabled is True
    assert issubclass(MultiControlNetUnionModel, nn.Module)


def test_what_a_pipeline_remembers_of_its_call():
    pipe = pipeline(dtype=torch.float32)
    assert guidance_scale_of(object()) is None and num_time_steps_of(object()) is None
    run(pipe, steps=2, guidance=3.5, images=1)
    assert guidance_scale_of(pipe) == 3.5 and num_time_steps_of(pipe) == 2
    assert execution_device_of(pipe) == torch.device("cpu") and execution_device_of(object()) is None
    assert vars(pipe)[PROGRESS_BAR] == {"disable": True}


def test_free_init():
    from diffusers.pipelines.free_init_utils import FreeInitMixin

    pipe = type("Pipe", (FreeInitMixin,), {})()
    assert free_init_of(pipe) == (1, False)
    pipe.enable_free_init(num_iters=3, use_fast_sampling=True)
    assert free_init_of(pipe) == (3, True)
    pipe.disable_free_init()
    assert free_init_of(pipe)[0] == 1


def test_settings_that_files_bring(tmp_path):
    scheduler = DDIMScheduler()
    assert SETTINGS_OF_FILES[1] in scheduler.config
    scheduler.save_pretrained(tmp_path)
    assert SETTINGS_OF_FILES[0] in scheduler.config


# ---- offloading and adapters


def test_offloaded_weights_and_the_hooks_that_bring_them(tmp_path):
    from accelerate import cpu_offload

    model = nn.Sequential(layer())
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert weights_elsewhere(model[0])["weight"].shape == (2, 2) and weights_elsewhere(layer()) == {}
    take_off_offloading(model[0])
    assert "forward" not in vars(model[0]) and "_hf_hook" not in vars(model[0])


def test_group_offloading_is_taken_off():
    model = unet(dtype=torch.float32)
    apply_group_offloading(model, onload_device=torch.device("cpu"), offload_type="leaf_level")
    offloaded = [module for module in model.modules() if "_diffusers_hook" in vars(module)]
    assert any("forward" in vars(module) for module in offloaded)
    for module in offloaded:
        take_off_offloading(module)
        assert not {"_diffusers_hook", "forward"} & vars(module).keys()


def test_a_replaced_forward_of_another_kind_stays():
    module = layer()
    module.forward = mine = lambda given: given
    take_off_offloading(module)
    assert module.forward is mine


def test_the_state_of_a_lora():
    from peft import LoraConfig, inject_adapter_in_model

    model = inject_adapter_in_model(LoraConfig(r=1, target_modules=["0"]), nn.Sequential(layer()))
    assert all(hasattr(model[0], name) for name in LORA_STATE) and isinstance(vars(model[0])["scaling"], dict)


# ---- nowhere else

OWN = {"self", "cls", "super()"}
KNOWN = {"_getframe", "_backend", "_NoTrainLpips"}  # of Python, joblib and torchmetrics


def private_attributes(path: Path) -> set[str]:
    """Names with one underscore that a file reads of objects that are not its own."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    own |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    others = {node.attr for node in attributes if ast.unparse(node.value).split(".")[0] not in OWN}
    return {name for name in others - own - KNOWN if name.startswith("_") and not name.startswith("__")}


def test_private_api_is_used_in_one_file_only():
    private = {"_compiled_call_impl", "_orig_mod", "_hf_hook", "_diffusers_hook", "_num_timesteps", "_guidance_scale"}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "private_api.py":
            assert not private_attributes(path), path
            assert not private & {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}, (
                path
            )


def test_a_private_attribute_is_seen(tmp_path):
    path = tmp_path / "file.py"
    path.write_text("pipe._execution_device; self._own; module._forward_hooks.values(); torch._dynamo.reset()")
    assert private_attributes(path) == {"_execution_device", "_forward_hooks", "_dynamo"}
