"""Modules that are given several images as a list, and values that are taken apart as one."""

import pytest
import torch
from torch import nn

from acfuse.errors import Reason
from tests.graph.fusing import Net, conv, fused_and_checked, images, refused


class Several(nn.Module):
    """A neck: of a list of images the first has a block, and all of them are put side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3), conv(1)

    def forward(self, images):
        if isinstance(images, torch.Tensor):
            images = [images, images]
        first = torch.relu(self.a(images[0]) + self.b(images[0]))
        return torch.cat([first, *images[1:]], 1)


class Crossed(nn.Module):
    """Of two images each arm reads another; of one, both read the same."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3), conv(1)

    def forward(self, images):
        first, second = images if isinstance(images, (list, tuple)) else (images, images)
        return torch.relu(self.a(first) + self.b(second))


@pytest.mark.parametrize("given", [list, tuple])
def test_a_block_in_a_module_that_takes_several_images_is_found(given):
    net = Net(lambda m, x: m.neck(given((torch.sigmoid(x), torch.relu(x)))), neck=Several())
    fused_and_checked(net, convolutions=1)


@pytest.mark.parametrize("given", [list, tuple])
def test_a_list_is_read_as_a_list(given):
    refused(Net(lambda m, x: m.neck(given((torch.sigmoid(x), torch.relu(x)))), neck=Crossed()))


def test_the_same_module_given_one_image_is_a_block():
    fused_and_checked(Net(lambda m, x: m.neck(torch.sigmoid(x)), neck=Crossed()))


def test_what_asked_for_its_type_takes_no_other_once_it_is_fused():
    fused = fused_and_checked(Crossed())
    (image,) = images([(2, 4, 7, 9)])
    with pytest.raises(AssertionError, match="a tensor when this module was fused"):
        fused((image, torch.relu(image)))


def test_where_nobody_is_seen_to_call_it_no_type_is_certain():
    def run(m, x):
        return m.neck((x, torch.relu(x))) if float(x.sum()) != 7 else x

    refused(Net(run, neck=Crossed()), Reason.UNTRACEABLE)


def test_calls_of_two_forms_are_refused():
    net = Net(lambda m, x: m.neck(x) + m.neck((x, torch.relu(x))), neck=Crossed())
    whys = refused(net, Reason.CALLS)
    assert any("several ways" in why for why in whys)


def test_images_deep_inside_an_argument_are_refused():
    inner = Net(lambda m, x: m.neck(x["image"]), neck=Crossed())
    refused(Net(lambda m, x: m.inner({"image": (x, torch.relu(x))}), inner=inner))


def _split_in_a_list(m, x):
    parts = list(m.a(x).split([2, 2], 1))
    parts.append(torch.relu(m.b(parts[-1]) + m.c(parts[-1])))
    return torch.cat(parts, 1)


def test_a_list_of_parts_is_followed():
    net = Net(_split_in_a_list, a=conv(1), b=conv(3, channels=(2, 2)), c=conv(1, channels=(2, 2)))
    fused_and_checked(net, convolutions=2)


def _last_chunk(m, x):
    parts = list(m.a(x).chunk(4, 1))
    return torch.relu(m.b(parts[-1]) + m.c(parts[-1]))


def test_of_chunks_there_may_be_fewer_than_were_asked_for():
    # Five channels in four chunks: 2 + 2 + 1, so that the last is the third.
    parts = {"a": conv(1, channels=(4, 5)), "b": conv(3, channels=(1, 1))}
    fused_and_checked(Net(_last_chunk, **parts, c=conv(1, channels=(1, 1))), convolutions=2)
