"""Class names of semantic data sets and benchmarks, in index order: facts, as public code bases register them.

ADE20K as in LISA (Apache-2.0), the Pascal sets as in SAN (MIT). Spelling is part of the benchmark, mistakes included:
a query made from another name is another benchmark.
"""

from __future__ import annotations


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


ADE20K = _names("""
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
    armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard,
    chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway,
    case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
    book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine,
    hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane,
    dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship,
    fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag,
    minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher,
    screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag
""")
"""The 150 scene-parsing classes, as LISA lists them; pixel value ``v`` is class ``v - 1``, 0 is none."""

COCO_STUFF = _names("""
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana,
apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, mirror,
dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster,
sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush, banner,
blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth,
clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill,
house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky,
skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree,
vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops,
window-blind, window-other, wood
""")
"""The 182 classes of COCO-Stuff; pixel value ``v`` is class ``v``, 255 is none."""

PASCAL_CONTEXT_59 = _names("""
    aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat,
    ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse,
    keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves,
    sidewalk, sign, sky, snow, sofa, diningtable, track, train, tree, truck, tvmonitor, wall, water, window, wood
""")
"""Pascal Context without background."""

PASCAL_CONTEXT_459 = _names("""
    accordion, aeroplane, air conditioner, antenna, artillery, ashtray, atrium, baby carriage, bag, ball, balloon,
    bamboo weaving, barrel, baseball bat, basket, basketball backboard, bathtub, bed, bedclothes, beer, bell, bench,
    bicycle, binoculars, bird, bird cage, bird feeder, bird nest, blackboard, board, boat, bone, book, bottle,
    bottle opener, bowl, box, bracelet, brick, bridge, broom, brush, bucket, building, bus, cabinet, cabinet door,
    cage, cake, calculator, calendar, camel, camera, camera lens, can, candle, candle holder, cap, car, card, cart,
    case, casette recorder, cash register, cat, cd, cd player, ceiling, cell phone, cello, chain, chair, chessboard,
    chicken, chopstick, clip, clippers, clock, closet, cloth, clothes tree, coffee, coffee machine, comb, computer,
    concrete, cone, container, control booth, controller, cooker, copying machine, coral, cork, corkscrew, counter,
    court, cow, crabstick, crane, crate, cross, crutch, cup, curtain, cushion, cutting board, dais, disc, disc case,
    dishwasher, dock, dog, dolphin, door, drainer, dray, drink dispenser, drinking machine, drop, drug, drum, drum
    kit, duck, dumbbell, earphone, earrings, egg, electric fan, electric iron, electric pot, electric saw,
    electronic keyboard, engine, envelope, equipment, escalator, exhibition booth, extinguisher, eyeglass, fan,
    faucet, fax machine, fence, ferris wheel, fire extinguisher, fire hydrant, fire place, fish, fish tank,
    fishbowl, fishing net, fishing pole, flag, flagstaff, flame, flashlight, floor, flower, fly, foam, food,
    footbridge, forceps, fork, forklift, fountain, fox, frame, fridge, frog, fruit, funnel, furnace, game
    controller, game machine, gas cylinder, gas hood, gas stove, gift box, glass, glass marble, globe, glove, goal,
    grandstand, grass, gravestone, ground, guardrail, guitar, gun, hammer, hand cart, handle, handrail, hanger, hard
    disk drive, hat, hay, headphone, heater, helicopter, helmet, holder, hook, horse, horse-drawn carriage, hot-air
    balloon, hydrovalve, ice, inflator pump, ipod, iron, ironing board, jar, kart, kettle, key, keyboard, kitchen
    range, kite, knife, knife block, ladder, ladder truck, ladle, laptop, leaves, lid, life buoy, light, light bulb,
    lighter, line, lion, lobster, lock, machine, mailbox, mannequin, map, mask, mat, match book, mattress, menu,
    metal, meter box, microphone, microwave, mirror, missile, model, money, monkey, mop, motorbike, mountain, mouse,
    mouse pad, musical instrument, napkin, net, newspaper, oar, ornament, outlet, oven, oxygen bottle, pack, pan,
    paper, paper box, paper cutter, parachute, parasol, parterre, patio, pelage, pen, pen container, pencil, person,
    photo, piano, picture, pig, pillar, pillow, pipe, pitcher, plant, plastic, plate, platform, player, playground,
    pliers, plume, poker, poker chip, pole, pool table, postcard, poster, pot, pottedplant, printer, projector,
    pumpkin, rabbit, racket, radiator, radio, rail, rake, ramp, range hood, receiver, recorder, recreational
    machines, remote control, road, robot, rock, rocket, rocking horse, rope, rug, ruler, runway, saddle, sand, saw,
    scale, scanner, scissors, scoop, screen, screwdriver, sculpture, scythe, sewer, sewing machine, shed, sheep,
    shell, shelves, shoe, shopping cart, shovel, sidecar, sidewalk, sign, signal light, sink, skateboard, ski, sky,
    sled, slippers, smoke, snail, snake, snow, snowmobiles, sofa, spanner, spatula, speaker, speed bump, spice
    container, spoon, sprayer, squirrel, stage, stair, stapler, stick, sticky note, stone, stool, stove, straw,
    stretcher, sun, sunglass, sunshade, surveillance camera, swan, sweeper, swim ring, swimming pool, swing, switch,
    table, tableware, tank, tap, tape, tarp, telephone, telephone booth, tent, tire, toaster, toilet, tong, tool,
    toothbrush, towel, toy, toy car, track, train, trampoline, trash bin, tray, tree, tricycle, tripod, trophy,
    truck, tube, turtle, tvmonitor, tweezers, typewriter, umbrella, unknown, vacuum cleaner, vending machine, video
    camera, video game console, video player, video tape, violin, wakeboard, wall, wallet, wardrobe, washing
    machine, watch, water, water dispenser, water pipe, water skate board, watermelon, whale, wharf, wheel,
    wheelchair, window, window blinds, wineglass, wire, wood, wool
""")
"""Pascal Context in full; "unknown" is one of its classes."""

PASCAL_VOC_20 = _names("""
    aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person,
    pottedplant, sheep, sofa, train, tv
""")
"""Pascal VOC 2012 without background."""

CAMVID = _names("sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist")
"""CamVid's 11 classes, as SegNet's edition has them; 11 is unlabelled."""
