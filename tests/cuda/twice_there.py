"""Arguments of the double backward pass on a GPU, and its results from there."""

import bnext

OF_ARRAYS = ("x", "dy", "weight", "bias", "residual", "ddx", "ddweight", "ddbias", "ddresidual")


def moved(inputs, put):
    """The same with arrays on a GPU, as `put` brings them there."""
    arrays = {name: getattr(inputs, name) for name in OF_ARRAYS}
    return inputs._replace(**{n: None if each is None else put(each) for n, each in arrays.items()})


def fetched(results, get):
    """The results as NumPy's arrays, as `get` fetches them."""
    return bnext.SecondGradients(*(None if each is None else get(each) for each in results))
