import torch as th

# Two test processes with as many threads each as there are cores are slower than one core alone
th.set_num_threads(1)
