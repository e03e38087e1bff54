"""Faults in fused ONNX files: what is done to a file, and the words that name the place."""

import numpy as np
from onnx import helper, numpy_helper


def node(graph, makes):
    return next(n for n in graph.node if makes in n.output)


def attribute(item, name):
    return next(a for a in item.attribute if a.name == name)


def inner(model, makes, name):
    return attribute(node(model.graph, makes), name).g


def stored(graph, name):
    return next(t for t in graph.initializer if t.name == name)


def put(graph, name, change):
    """Other numbers in a tensor."""
    tensor = stored(graph, name)
    array = np.array(change(numpy_helper.to_array(tensor).copy()))
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def first(array, value):
    array.flat[0] = value
    return array


def ulp(array):
    return first(array, np.nextafter(array.flat[0], array.dtype.type(9)))


def size(value, axis, of):
    value.type.tensor_type.shape.dim[axis].dim_value = of


def known(model, name):
    return next(v for v in model.graph.value_info if v.name == name)


def assign(message, **fields):
    for name, value in fields.items():
        setattr(message, name, value)


# By network: what is done to the file, and the words that name the place.
FAULTS = {
    "plain": {
        "an upper bound": (lambda m: put(m.graph, "high", lambda a: a * 2), "initializer high"),
        "a lower bound of -0": (
            lambda m: put(m.graph, "low", lambda a: -0.0 * a),
            "initializer low",
        ),
        "a reshape": (
            lambda m: put(m.graph, "rows", lambda a: first(a, 1)),
            "initializer rows [0] is 1, expected 0",
        ),
        "a weight x (1 + 4e-5)": (
            lambda m: put(m.graph, "head", lambda a: first(a, a.flat[0] * np.float32(1 + 4e-5))),
            "initializer head [0, 0, 0, 0] is",
        ),
        "a bit of a weight": (lambda m: put(m.graph, "head", ulp), "(1 of 24 numbers differ)"),
        "a scale": (
            lambda m: put(m.graph, "scale", lambda a: first(a, 2)),
            "initializer scale [0]",
        ),
        "a slope": (
            lambda m: assign(attribute(node(m.graph, "l"), "alpha"), f=0.21),
            "node l (LeakyRelu), attribute alpha is 0.21, expected 0.2",
        ),
        "a slope that is left out": (
            lambda m: node(m.graph, "l").ClearField("attribute"),
            "node l (LeakyRelu), attribute alpha is missing",
        ),
        "an attribute more": (
            lambda m: node(m.graph, "y").attribute.append(
                helper.make_attribute("auto_pad", "VALID")
            ),
            "node y (Conv), attribute auto_pad should not be there",
        ),
        "a mode": (
            lambda m: assign(attribute(node(m.graph, "u"), "mode"), s=b"linear"),
            "node u (Resize), attribute mode",
        ),
        "an attribute's type": (
            lambda m: assign(attribute(node(m.graph, "l"), "alpha"), type=2),
            "attribute alpha, type is INT, expected FLOAT",
        ),
        "a constant": (
            lambda m: attribute(node(m.graph, "k"), "value").t.CopyFrom(
                numpy_helper.from_array(np.ones((1, 4, 1, 1), np.float32))
            ),
            "node k (Constant), attribute value",
        ),
        "a constant's type": (
            lambda m: assign(attribute(node(m.graph, "k"), "value").t, data_type=6),
            "attribute value, data_type",
        ),
        "a batch that is fixed": (
            lambda m: size(m.graph.input[0], 0, 1),
            "input x is float[1,4,h,w], expected float[n,4,h,w]",
        ),
        "a size of another name": (
            lambda m: assign(m.graph.input[0].type.tensor_type.shape.dim[2], dim_param="w"),
            "input x is float[n,4,w,w]",
        ),
        "an input of any shape": (
            lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"),
            "input x is float[...]",
        ),
        "an input's type": (
            lambda m: assign(m.graph.input[0].type.tensor_type, elem_type=10),
            "input x is float16[n,4,h,w]",
        ),
        "a false output shape": (
            lambda m: size(m.graph.output[0], 1, 7),
            "output y is float[n,7,h2,w2], expected float[n,6,h2,w2]",
        ),
        "an output's batch": (
            lambda m: size(m.graph.output[0], 0, 1),
            "output y is float[1,6,h2,w2]",
        ),
        "an output of any shape": (
            lambda m: m.graph.output[0].type.tensor_type.ClearField("shape"),
            "output y is float[...]",
        ),
        "outputs in another order": (lambda m: m.graph.output.reverse(), "output y"),
        "an output less": (
            lambda m: m.graph.output.pop(),
            "output is ['output y'], expected ['output y', 'output flat']",
        ),
        "an output more": (
            lambda m: m.graph.output.add(name="t"),
            "expected ['output y', 'output flat']",
        ),
        "an input more": (
            lambda m: m.graph.input.add().CopyFrom(helper.make_tensor_value_info("q", 1, [1])),
            "expected ['input x']",
        ),
        "a weight that is an input as well": (
            lambda m: m.graph.input.add().CopyFrom(
                helper.make_tensor_value_info("head", 1, [6, 4, 1, 1])
            ),
            "['input x', 'input head']",
        ),
        "a value's false shape": (
            lambda m: size(known(m, "l"), 1, 5),
            "value_info l is float[n,5,h,w], expected float[n,4,h,w]",
        ),
        "a false shape of one more value": (
            lambda m: m.graph.value_info.add().CopyFrom(
                helper.make_tensor_value_info("t", 1, ["n", 4, "h", 3])
            ),
            "value_info t is float[n,4,h,3], which does not follow from the rest",
        ),
        "a shape of no value": (
            lambda m: m.graph.value_info.add().CopyFrom(
                helper.make_tensor_value_info("zz", 1, [1])
            ),
            "value_info zz",
        ),
        "a node skipped": (
            lambda m: node(m.graph, "u").input.__setitem__(0, "l"),
            "node u (Resize), input is ['l', '', 'scale'], expected ['t', '', 'scale']",
        ),
        "another operator": (
            lambda m: assign(node(m.graph, "m"), op_type="Add"),
            "node m (Mul), op_type is 'Add', expected 'Mul'",
        ),
        "another domain": (
            lambda m: assign(node(m.graph, "m"), domain="own"),
            "node m (Mul), domain",
        ),
        "a node more": (
            lambda m: m.graph.node.add().CopyFrom(helper.make_node("Relu", ["y"], ["z"])),
            "node z (Relu) should not be there",
        ),
        "a node less": (
            lambda m: m.graph.node.remove(node(m.graph, "flat")),
            "node flat (Reshape) is missing",
        ),
        "a tensor more": (
            lambda m: m.graph.initializer.add().CopyFrom(helper.make_tensor("zz", 1, [1], [0])),
            "initializer zz should not be there",
        ),
        "a tensor less": (
            lambda m: m.graph.initializer.remove(stored(m.graph, "rows")),
            "initializer rows is missing",
        ),
        "a tensor twice": (
            lambda m: m.graph.initializer.append(stored(m.graph, "rows")),
            "initializer is [",
        ),
        "numbers twice": (
            lambda m: stored(m.graph, "high").float_data.append(7),
            "initializer high holds its numbers more than once",
        ),
        "numbers of another type": (
            lambda m: assign(stored(m.graph, "rows"), data_type=11),
            "initializer rows, data_type is 11, expected 7",
        ),
        "a tensor's shape": (
            lambda m: stored(m.graph, "head").dims.__setitem__(slice(None), [4, 6, 1, 1]),
            "initializer head, dims is [4, 6, 1, 1]",
        ),
        "too few numbers": (
            lambda m: assign(stored(m.graph, "head"), raw_data=b"1234"),
            "initializer head cannot be read",
        ),
        "a new weight's shape": (
            lambda m: stored(m.graph, "s.weight").dims.__setitem__(slice(None), [4, 4, 1, 9]),
            "initializer s.weight, dims is [4, 4, 1, 9]",
        ),
        "a new weight less": (
            lambda m: m.graph.initializer.remove(stored(m.graph, "s.weight")),
            "initializer s.weight is missing",
        ),
        "a new layer's pads": (
            lambda m: attribute(node(m.graph, "s"), "pads").ints.__setitem__(0, 0),
            "node s (Conv), attribute pads is [0, 1, 1, 1], expected [1, 1, 1, 1]",
        ),
        "the opset": (
            lambda m: assign(m.opset_import[0], version=18),
            "opset_import, version is 18, expected 17",
        ),
        "an opset more": (
            lambda m: m.opset_import.add(domain="own", version=1),
            "opset_import own should not be there",
        ),
        "the IR version": (lambda m: assign(m, ir_version=3), "ir_version is 3, expected 10"),
        "what the user wrote of it": (
            lambda m: assign(m.metadata_props[1], value="7"),
            "metadata_props classes, value is '7', expected '6'",
        ),
        "metadata less": (lambda m: m.metadata_props.pop(0), "metadata_props author is missing"),
        "metadata more": (
            lambda m: m.metadata_props.add(key="k", value="v"),
            "metadata_props k should not be there",
        ),
        "metadata of a node": (
            lambda m: node(m.graph, "m").metadata_props.add(key="k", value="v"),
            "node m (Mul), metadata_props k",
        ),
        "the model's version": (
            lambda m: assign(m, model_version=2),
            "model_version is 2, expected 0",
        ),
        "the model's domain": (
            lambda m: assign(m, domain="other"),
            "domain is 'other', expected 'net'",
        ),
        "a quantisation": (
            lambda m: m.graph.quantization_annotation.add(tensor_name="head"),
            "quantization_annotation head",
        ),
        "a training": (
            lambda m: m.training_info.add().initialization.node.append(node(m.graph, "m")),
            "training_info",
        ),
        "a function more": (
            lambda m: m.functions.add(name="f", domain="own"),
            "functions f should not be there",
        ),
        "a sparse tensor": (
            lambda m: m.graph.sparse_initializer.add().values.CopyFrom(
                helper.make_tensor("sp", 1, [1], [1])
            ),
            "sparse_initializer sp",
        ),
        "a field of a later onnx": (
            lambda m: m.ParseFromString(m.SerializeToString() + b"\xc8\x3e\x01"),
            "fields that this version of onnx does not know",
        ),
        "a field of a node's that is unknown": (
            lambda m: node(m.graph, "m").MergeFromString(b"\xc8\x3e\x01"),
            "node m (Mul) has fields",
        ),
        "a denotation": (
            lambda m: assign(m.graph.input[0].type, denotation="IMAGE"),
            "input x, denotation is 'IMAGE'",
        ),
        "where the data is": (
            lambda m: assign(stored(m.graph, "head"), data_location=1),
            "initializer head, data_location is EXTERNAL, expected DEFAULT",
        ),
        "another file's data": (
            lambda m: stored(m.graph, "head").external_data.add(key="location", value="a.bin"),
            "initializer head, external_data location should not be there",
        ),
    },
    "branches": {
        "a slope in a branch": (
            lambda m: assign(attribute(node(inner(m, "z", "then_branch"), "t"), "alpha"), f=0.2),
            "attribute then_branch, node t (LeakyRelu), attribute alpha is 0.2, expected 0.3",
        ),
        "the other branch": (
            lambda m: assign(attribute(node(inner(m, "z", "else_branch"), "e"), "alpha"), f=0.6),
            "attribute else_branch, node e (Elu), attribute alpha",
        ),
        "branches swapped": (
            lambda m: [
                assign(a, name={"then_branch": "else_branch", "else_branch": "then_branch"}[a.name])
                for a in node(m.graph, "z").attribute
            ],
            "node z (If), attribute then_branch",
        ),
        "a branch less": (
            lambda m: node(m.graph, "z").attribute.remove(
                attribute(node(m.graph, "z"), "else_branch")
            ),
            "attribute else_branch is missing",
        ),
        "a condition": (
            lambda m: put(m.graph, "yes", np.logical_not),
            "initializer yes is False, expected True",
        ),
        "a count": (
            lambda m: put(m.graph, "times", lambda a: a + 1),
            "initializer times is 3, expected 2",
        ),
        "an operator of a body": (
            lambda m: assign(node(inner(m, "y", "body"), "next"), op_type="Sigmoid"),
            "node y (Loop), attribute body, node next (Tanh), op_type",
        ),
        "a body's output": (
            lambda m: assign(inner(m, "y", "body").output[1], name="ls"),
            "attribute body, output next, name is 'ls', expected 'next'",
        ),
        "a body's input": (
            lambda m: size(inner(m, "y", "body").input[2], 1, 5),
            "attribute body, input v is float[n,5,h,w]",
        ),
        "a tensor in a branch that hides another": (
            lambda m: inner(m, "z", "then_branch").initializer.append(stored(m.graph, "yes")),
            "node z (If), attribute then_branch, initializer yes should not be there",
        ),
        "a layer in a branch": (
            lambda m: attribute(
                node(inner(m, "z", "then_branch"), "s"), "strides"
            ).ints.__setitem__(0, 2),
            "attribute then_branch, node s (Conv), attribute strides",
        ),
        "a value's shape in a branch": (
            lambda m: (
                inner(m, "z", "then_branch")
                .value_info.add()
                .CopyFrom(helper.make_tensor_value_info("s", 1, ["n", 4, "h", 9]))
            ),
            "then_branch, value_info s is float[n,4,h,9]",
        ),
    },
    "functions": {
        "a function's constant": (
            lambda m: assign(attribute(node(m.functions[0], "q"), "beta"), f=0.5),
            "functions gate, node q (HardSigmoid), attribute beta is 0.5, expected 0.6",
        ),
        "a function's argument": (
            lambda m: assign(attribute(node(m.graph, "y"), "slope"), f=0.5),
            "node y (gate), attribute slope is 0.5, expected 0.4",
        ),
        "an argument that is not passed on": (
            lambda m: assign(attribute(node(m.functions[0], "p"), "alpha"), ref_attr_name=""),
            "gate, node p (LeakyRelu), attribute alpha, ref_attr_name is '', expected 'slope'",
        ),
        "a function's operator": (
            lambda m: assign(node(m.functions[0], "r"), op_type="Add"),
            "functions gate, node r (Mul), op_type",
        ),
        "a function's output": (
            lambda m: m.functions[0].output.__setitem__(0, "p"),
            "functions gate, output is ['p'], expected ['r']",
        ),
        "a function's opset": (
            lambda m: assign(m.functions[0].opset_import[0], version=13),
            "functions gate, opset_import, version is 13",
        ),
        "a function less": (lambda m: m.functions.pop(), "functions gate is missing"),
        "a function twice": (
            lambda m: m.functions.append(m.functions[0]),
            "functions is ['functions gate', 'functions gate']",
        ),
    },
    "script": {
        "an eps": (
            lambda m: assign(
                attribute(
                    next(n for n in m.graph.node if n.op_type == "BatchNormalization"), "epsilon"
                ),
                f=1e-3,
            ),
            "(BatchNormalization), attribute epsilon is 0.001, expected 1e-05",
        ),
        "a mean": (
            lambda m: put(m.graph, "norm.running_mean", ulp),
            "initializer norm.running_mean [0]",
        ),
        "a head": (
            lambda m: put(m.graph, "head.weight", lambda a: a * np.float32(1 + 4e-5)),
            "initializer head.weight [0, 0, 0, 0]",
        ),
        "a head's stride": (
            lambda m: attribute(
                next(n for n in m.graph.node if "head.weight" in n.input), "strides"
            ).ints.__setitem__(1, 1),
            "attribute strides is [2, 1], expected [2, 2]",
        ),
    },
    "dynamo": {
        "an axis": (
            lambda m: assign(
                attribute(next(n for n in m.graph.node if n.op_type == "Softmax"), "axis"), i=2
            ),
            "(Softmax), attribute axis is 2, expected 1",
        ),
        "a bias": (lambda m: put(m.graph, "head.bias", ulp), "initializer head.bias [0]"),
        "a value's type": (
            lambda m: assign(m.graph.value_info[0].type.tensor_type, elem_type=11),
            "value_info",
        ),
    },
}
