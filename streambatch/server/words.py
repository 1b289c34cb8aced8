"""The words that built-in answers are made of: a seeded ring of text, of which an answer is a slice.

Pure: the same seed gives the same ring, and the same position the same words.
"""

from itertools import accumulate
from random import Random

TEXT = """
a about across after again all along also always an and any around as at back be because been before begin being
between both bring build but by call can carry change city clear close cold come common could country course cross
dark day did different do does down draw each early earth east end enough even every example far fast few field find
first five follow for form found four free from full game gave general get give go gold good grand great green grow
had half hand hard has have head hear help her here high him his hold home hour house how if in into is it its just
keep kind know land large last late learn leave left less letter life light like line list little live long look low
made make man many mark may mean measure middle might mind more most move much must name near need never new next
night no north not note now number of off often old on once one only open or order other our out over own page paper
part pass path plain plan plant play point power press quick quiet rain read real rest right river road room round
run same say sea second see seem sentence set several shall she short should show side simple since six slow small
so some soon sound south space stand star start state still stone story street strong such sun sure table take talk
tell ten than that the their them then there these they thing think this those though three through time to together
too took top toward town travel tree true turn two under until up upon us use usual very voice wait walk want warm
was watch water way we week well went were west what wheel when where which while white who whole why will wind
winter with without word work world would write year yes yet you young your
"""
WORDS = TEXT.split()
RING_BITS = 14
LEAST, MOST = 6, 20


class Ring:
    """`pick(n)` slices 6 to 20 words out of 2^14 seeded ones; `n` is any number of 32 random bits."""

    def __init__(self, seed: int) -> None:
        chosen = Random(f"streambatch words {seed}").choices(WORDS, k=(1 << RING_BITS) + MOST)
        self._text = " ".join(chosen)
        self._starts = [0, *accumulate(len(word) + 1 for word in chosen)]

    def pick(self, n: int) -> str:
        first = n & ((1 << RING_BITS) - 1)
        count = LEAST + (n >> RING_BITS) % (MOST - LEAST + 1)
        return self._text[self._starts[first] : self._starts[first + count] - 1]
