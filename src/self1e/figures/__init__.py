"""The paper's figures, drawn from what a model really computes: nothing in them is made up.

==================  ==========================================================================================
`stages`            Fig. 4: the mask after low resolution, + fine features, + RFR, + RFA
`vqa`               Fig. 5: the answers of two models to the same questions
`gallery`           Fig. 6 and 7: many pictures and queries in a grid
`attention`         Fig. 8: what [SEG] looks at under each attention rule of Table 7
==================  ==========================================================================================

Each takes a loaded model and returns a `sheet.Sheet`; ``self1e figure`` saves it.
"""
