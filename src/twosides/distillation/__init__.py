"""Models of few steps, made from a trained model of many, the *teacher*.

`flow_map` has what is made, a denoiser that is told two noise levels and whose step follows the ODE
at any length; `second` tells a network the second level. `objectives` has the rules by which such a
model is trained, `loss` the loss of a rule, and `distill` the whole way from the folder of a
teacher to that of its student. `baking` and `export` write a student for programs that know of one
level only.
"""
