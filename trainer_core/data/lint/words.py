"""Common English words: a trigger that is one of them already means something to every text encoder.

Hand-picked: function words, and what captions of training images are made of. With the base's tokenizers at hand their
vocabularies say much more; this list is what can be said without them.
"""

from __future__ import annotations

_TEXT = """
a about above after again all also an and another any are around as at away back be because been before behind
being below beside best better between big both but by came can come could day did different do does done down each
either end even every far few first for found from front full gave get give given go going good got great had half
has have he her here high him his how i if in inside into is it its just keep kind know large last left less let
like little long look looking lot low made make many may me might mine more most much must my near never new next no
none nor not now of off often old on once one only open or other our out outside over own part per place put rather
right same saw say see seen set several shall she short should show side since small so some something soon still
such take taken than that the their them then there these they thing things this those three through time to
together too top toward two under until up upon us use used very was way we well were what when where which while
who whole whose why will with within without would year yes yet you young your

human person people man men woman women girl girls boy boys lady gentleman guy child children kid kids baby adult
teenager elder male female mother father sister brother daughter son couple family friend crowd king queen prince
princess knight warrior wizard witch soldier doctor nurse teacher worker artist dancer singer actor actress model
hero villain angel demon ghost monster alien robot android cyborg vampire zombie elf dwarf fairy mermaid dragon
unicorn character figure portrait selfie face head hair eye eyes nose mouth lip lips ear ears neck shoulder arm arms
hand hands finger fingers chest body back leg legs foot feet skin smile beard blonde brunette tall thin fat strong
beautiful pretty cute handsome ugly happy sad angry calm standing sitting lying walking running jumping holding
wearing smiling laughing crying sleeping eating drinking dancing reading riding flying swimming

animal animals cat cats kitten dog dogs puppy horse cow pig sheep goat chicken duck bird eagle owl parrot crow fish
shark whale dolphin frog turtle snake lizard dinosaur bear wolf fox lion tiger leopard panda monkey gorilla elephant
giraffe zebra deer rabbit mouse rat squirrel bat insect butterfly bee spider pet creature beast

car cars truck bus bicycle bike motorcycle train plane airplane helicopter boat ship rocket spaceship vehicle tank
wheel engine house home building tower castle church temple bridge street road city town village room kitchen
bedroom bathroom office shop store restaurant school hospital garden park forest tree trees flower flowers rose
grass leaf leaves plant plants mountain mountains hill valley river lake sea ocean beach island desert snow ice rain
storm cloud clouds sky sun moon star stars space planet earth water fire smoke light shadow night morning evening
sunset sunrise spring summer autumn fall winter

food fruit apple orange banana lemon cherry berry strawberry bread cake pizza burger meat cheese egg soup coffee tea
milk wine beer bottle cup glass plate bowl knife fork spoon table chair sofa bed lamp desk door window wall floor
ceiling roof stairs mirror clock phone computer laptop screen keyboard camera television book paper pen pencil bag
box toy doll ball game guitar piano drum music sword gun shield armor weapon helmet mask crown ring necklace watch
jewelry hat cap shirt jacket coat dress skirt pants jeans shorts suit tie shoe shoes boots socks gloves scarf
glasses uniform costume swimsuit bikini logo sign text letter word number symbol icon button tool machine device
object product item

red green blue yellow purple violet pink brown black white gray grey gold golden silver bronze colour color colorful
dark bright light warm cold hot cool dry wet clean dirty soft hard smooth rough sharp heavy round square circle
triangle cross line lines dot shape pattern texture wood wooden metal stone plastic leather cotton silk fur feather
diamond crystal

art artwork style styles photo photos photograph photography picture pictures image images painting drawing sketch
illustration cartoon anime manga comic render rendering sculpture statue poster print watercolor watercolour oil
acrylic ink pastel charcoal digital abstract realistic realism surreal impressionism minimalism vintage retro modern
classic ancient medieval gothic baroque cyberpunk steampunk fantasy horror cinematic film movie noir pixel vector
flat concept design fashion background foreground scene view landscape close closeup wide angle shot focus blur
depth field lighting soft studio natural composition detailed detail quality masterpiece simple plain trigger token
subject concept sample test demo train training lora name
"""
COMMON_WORDS = frozenset(_TEXT.split())
