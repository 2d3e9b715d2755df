"""Compiled models: uncompiled on steps that need a partial Hessian, compiled on all others.

Compiled code has no second derivative. ``torch.compiler.set_stance`` runs the original code and
keeps the compiled code in its cache, so switching back and forth does not recompile.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.nn.parallel import DistributedDataParallel

from sgdph.curvature.side_effects import uncompiled
from sgdph.step import SecondOrderOptimizer
from sgdph.user_warning import warn_user
from sgdph.wrappers import wrapped_sgdph

ModelOrFunction = TypeVar("ModelOrFunction", bound=Callable[..., Any])


def compiled(
    model_or_loss_fn: ModelOrFunction, optimizer: object, **compile_options: Any
) -> ModelOrFunction:
    """Compile a model or a function, and run it uncompiled when a partial Hessian is due.

    While ``optimizer.hessian_due`` is true and gradients are enabled, calls run uncompiled, because
    compiled code has no second derivative. This holds for all micro-batches of such a step. All
    other calls run compiled, and so does every call under ``no_grad``. Switching between the two
    does not recompile.

    A module is compiled in place, as by ``module.compile()``, and is returned. Its class,
    parameters, buffers and the keys of its ``state_dict()`` do not change. A copy of it, by
    ``copy.deepcopy`` or by pickling, is not compiled. A function is not changed; the returned
    function calls it.

    Code that is already compiled is not compiled again, but it also runs uncompiled when a partial
    Hessian is due. This covers results of ``torch.compile`` or of a framework, modules after
    ``module.compile()``, and models with some compiled blocks.

    If you switch to another optimizer, call ``compiled`` again: the last call counts.

    Args:
        model_or_loss_fn: The model, which may be inside ``DistributedDataParallel``; or a function
            that computes the loss or part of it.
        optimizer: The :class:`sgdph.SGDPH` or :class:`sgdph.PartialHessian` that trains it, or a
            framework's wrapper around one. Pass a list if the losses of several optimizers pass
            through the model.
        compile_options: Options of ``torch.compile``: ``mode``, ``backend``, ``dynamic``,
            ``fullgraph``, ``options``.

    Returns:
        The same module, or a function that takes and returns what ``model_or_loss_fn`` does.

    Raises:
        TypeError: ``model_or_loss_fn`` is not a module or function, or is scripted, a generator or
            async; ``optimizer`` contains no :class:`sgdph.SGDPH` or :class:`sgdph.PartialHessian`.
        ValueError: Options were given for code that is already compiled.

    Example:
        >>> optimizer = SGDPH(param_groups(model), hessian_interval=10)
        >>> model = compiled(model, optimizer)
        >>> for x, y in loader:
        ...     optimizer.backward(loss_fn(model(x), y))
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """
    unfit = (type, torch.jit.ScriptModule, torch.jit.ScriptFunction)
    # The body of such a function runs after the call has returned.
    runs_later = (inspect.isgeneratorfunction, inspect.iscoroutinefunction)
    fits = callable(model_or_loss_fn) and not isinstance(model_or_loss_fn, unfit)
    if not fits or any(tells(model_or_loss_fn) for tells in runs_later):
        raise TypeError(
            "sgdph.compiled takes a model or a function, and the optimizer that trains it; it "
            "cannot take scripted modules, generators or async functions. Got "
            f"{_described(model_or_loss_fn)}"
        )
    optimizers = _optimizers(optimizer)
    _warn_if_always_due(optimizers)
    is_module = isinstance(model_or_loss_fn, nn.Module)
    compile_it = _compile_module if is_module else _compile_function
    result: ModelOrFunction = compile_it(model_or_loss_fn, optimizers, compile_options)
    return result


@contextlib.contextmanager
def uncompiled_while_due(optimizers: Iterable[SecondOrderOptimizer]) -> Iterator[None]:
    """Run all compiled code uncompiled while a partial Hessian is due.

    Use it around code that trains one step inside a framework's loop. After a step of one of the
    optimizers inside the context, the rest runs compiled, unless a partial Hessian is due again.

    Args:
        optimizers: The optimizers whose losses the code computes.
    """
    optimizers = list(optimizers)
    with contextlib.ExitStack() as inside, contextlib.ExitStack() as stance:
        # Torch calls step hooks from the surrounding code, which may be compiled.
        @_disable_dynamo
        def follow(*_: object) -> None:
            stance.close()
            if any(each.hessian_due for each in optimizers):
                stance.enter_context(uncompiled())

        for each in optimizers:
            inside.callback(each.register_step_post_hook(follow).remove)
        follow()
        yield


class _Switch:
    """A function that runs uncompiled while a partial Hessian is due, and compiled otherwise."""

    def __init__(
        self,
        plain: Callable[..., Any],
        fast: Callable[..., Any],
        optimizers: Sequence[SecondOrderOptimizer],
    ) -> None:
        self.plain, self.fast, self.optimizers = plain, fast, optimizers

    # Otherwise, compiling code that calls this would trace the present answer into it.
    @_disable_dynamo
    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if torch.is_grad_enabled() and any(each.hessian_due for each in self.optimizers):
            with uncompiled():
                return self.plain(*arguments, **named)
        return self.fast(*arguments, **named)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        # A parametrized module copies its attributes. A copied switch would call the old module.
        return type(None), ()


def _compile_module(module: Any, optimizers: Sequence[SecondOrderOptimizer], options: Any) -> Any:
    # No getattr or setattr: Fabric's wrapper forwards both to the module inside.
    plain, fast = module._call_impl, vars(module).get("_compiled_call_impl")
    if fast is None and isinstance(module, DistributedDataParallel):
        # Compiling the wrapper compiles the module inside, but not if that is a class of torch.
        _compile_module(module.module, optimizers, options)
        return module
    parts = {name: each for name, each in module.named_modules() if _is_compiled(each, module)}
    if isinstance(fast, _Switch):
        fast = None if options else fast.fast
    if options and (fast is not None or parts):
        first = next(iter(parts), "")
        which = f"part of the model ({first})" if first else "the model"
        raise ValueError(_compiled_already(which, options))
    if fast is None:
        fast = plain if parts else torch.compile(_traceable(plain, module.forward), **options)
    for part in parts.values():
        if part is not module:
            # Checkpointing calls the part again in the backward, outside the whole model's call.
            _compile_module(part, optimizers, {})
    object.__setattr__(module, "_compiled_call_impl", _Switch(plain, fast, optimizers))
    return module


def _traceable(call: Callable[..., Any], written: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that has to be passed to ``torch.compile`` in place of ``call``.

    Args:
        call: The function that is called.
        written: The function that holds the code: for a module, its ``forward``.
    """

    def inlined(*arguments: Any, **named: Any) -> Any:
        return call(*arguments, **named)

    # Older torch compiles its own code only if other code calls it.
    return inlined if (getattr(written, "__module__", None) or "").startswith("torch.") else call


def _is_compiled(each: nn.Module, module: nn.Module) -> bool:
    if "_orig_mod" in each._modules:
        return True
    return each is not module and vars(each).get("_compiled_call_impl") is not None


def _compile_function(
    function: Callable[..., Any], optimizers: Sequence[SecondOrderOptimizer], options: Any
) -> Any:
    plain, fast, known = function, None, _switch_of(function)
    if known is not None:
        plain, fast = known.plain, None if options else known.fast
    while _is_of_torch_compile(plain):
        plain, fast = plain._torchdynamo_orig_callable, function  # type: ignore[attr-defined]
    if fast is None and hasattr(plain, "_torchdynamo_orig_callable"):
        # A wrapper around a compiled function. Torch would compile that one and skip the wrapper.
        fast = plain
    if fast is None:
        fast = torch.compile(_traceable(plain, plain), **options)
    elif options:
        raise ValueError(_compiled_already("the function", options))
    switch = _Switch(plain, fast, optimizers)

    @functools.wraps(plain)
    def call(*arguments: Any, **named: Any) -> Any:
        return switch(*arguments, **named)

    call._switch = switch  # type: ignore[attr-defined]
    return call


def _switch_of(function: Callable[..., Any]) -> _Switch | None:
    # The attribute alone proves nothing: functools.wraps copies it to other wrappers.
    is_ours = getattr(function, "__globals__", None) is globals()
    return getattr(function, "_switch", None) if is_ours else None


def _is_of_torch_compile(function: Callable[..., Any]) -> bool:
    # Its attributes prove nothing: functools.wraps copies them.
    return getattr(function, "__globals__", {}).get("__name__") == "torch._dynamo.eval_frame"


def _compiled_already(what: str, options: Any) -> str:
    return (
        f"{what} is compiled already and is not compiled again, so {', '.join(options)} has no "
        "effect. Pass it to torch.compile, or leave compiling to sgdph.compiled"
    )


def _optimizers(optimizer: object) -> list[SecondOrderOptimizer]:
    several = optimizer if isinstance(optimizer, (list, tuple)) and optimizer else [optimizer]
    return [wrapped_sgdph(each) for each in several]


def _warn_if_always_due(optimizers: Sequence[SecondOrderOptimizer]) -> None:
    groups = [g for each in optimizers if each.newton_parameters for g in each.param_groups]
    if any(group.get("hessian_interval") == 1 for group in groups):
        warn_user(
            "hessian_interval is 1, so every training step needs a partial Hessian and runs "
            "uncompiled. To train compiled, set a larger one, such as hessian_interval=10",
        )


def _described(given: object) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__}"
    return f"an object of class {type(given).__name__}"
