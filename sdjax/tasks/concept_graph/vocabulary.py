"""The words of the task: concepts with their names, shapes, punctuation."""

START = 'start'

SHAPES = ('triangle', 'square', 'circle', 'hexagon', 'pentagon', 'octagon')

PUNCTUATION = (';', ',', '|', '?', '=', ':')
"""Everything in the compact rendering that is not a name."""

_NAMES = {
  'fruits': """plum mango fig pear peach lemon lime cherry banana papaya
    apricot quince melon guava lychee kiwi grape orange apple raspberry""",
  'fish': """trout pike eel cod bass salmon tuna carp perch herring
    haddock sardine anchovy halibut turbot mullet snapper catfish sturgeon
    mackerel""",
  'birds': """pigeon parrot sparrow robin crow raven finch heron stork owl
    swallow magpie turkey goose duck swan eagle falcon canary pelican""",
  'flowers': """tulip rose daisy lily violet orchid peony iris poppy pansy
    lotus jasmine marigold begonia dahlia petunia lavender magnolia carnation
    daffodil""",
  'trees': """oak elm birch maple pine cedar willow ash beech poplar
    spruce larch alder hazel cypress juniper sycamore aspen fir yew""",
  'metals': """iron copper zinc tin lead silver gold nickel cobalt chromium
    titanium tungsten platinum aluminium magnesium manganese lithium sodium
    potassium calcium""",
  'instruments': """violin viola cello flute oboe clarinet trumpet trombone
    tuba harp piano guitar banjo lute drum cymbal organ accordion bassoon
    mandolin""",
  'tools': """hammer saw drill chisel wrench pliers axe shovel rake clamp
    screwdriver anvil trowel spade hoe mallet crowbar ladder pickaxe sickle""",
}

CONCEPTS: dict[str, tuple[str, ...]] = {
  concept: tuple(names.split()) for concept, names in _NAMES.items()
}
"""Concept to its 20 names; no name belongs to two concepts."""
