"""What a training loop needs of a dataset, without any framework: its order, its images, what is read next.

images > reading > packed
order
"""
