import torch,resource
torch.set_num_threads(1)
from riftcli.protocols import Predictions
from riftcli import catalog
N,C=4000,10000
l=torch.randn(N,C); p=Predictions(l,torch.randint(0,C,(N,)),torch.zeros(N,1),[str(i) for i in range(C)],'multiclass')
import time
def rss(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3
print('logits MB',l.nbytes/1e6,'rss',rss())
for m in ('acc','top5','bacc','f1','kappa','brier','ece','nll'):
    t=time.time(); v=catalog.component('metric',m)().compute(p)['value']; print(m,v,'maxrss',rss(),round(time.time()-t,2))
