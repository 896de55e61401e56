"""A real gateway's ledger against the simulated API's own bill: it agrees, and what is planted into it is named."""

import random

from tests.reconcile.__main__ import MODELS, exports, gpu_file, named, reconcile, traffic, world, write
from tests.reconcile.plant import places


async def test_the_providers_own_export_agrees_to_the_nano_dollar_and_every_plant_in_it_is_named(tmp_path):
    async with world(tmp_path, seed=11) as place:
        await traffic(place, 150, random.Random(11))
        true = await exports(place)
    code, found = await reconcile(place, write(place, true, "true"))
    assert code == 0 and found["difference"] == found["apart"] == "0.000000000"
    assert sum(row["tokens_theirs"]["requests"] for row in found["rows"]) == 150
    assert (await reconcile(place, gpu_file(place, true, "true")))[1]["apart"] == "0.000000000"
    where = places(MODELS, [model for model in MODELS if true.of(model)["input_cached_tokens"] > 256])
    assert await named(place, true, list(where), where) == set(where)
