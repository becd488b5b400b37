// What Knative's own autoscaler decides, for the port in crates/cli/src/simulate/kpa.rs.
//
// Anew after a change here, with a Go toolchain:
//
//	cd tests/scaling-vectors/kpa && go test -run TestWrite -count=1 .
//
// It writes ../kpa.json, which the test `decisions_equal_knatives` of flywheel-cli reads.
package kpa

import (
	"context"
	"encoding/json"
	"math"
	"math/rand"
	"os"
	"testing"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/autoscaler/metrics"
	"knative.dev/serving/pkg/autoscaler/scaling"
)

type step struct {
	Second int      `json:"second"`
	RPS    *float64 `json:"rps"` // requests of the last second; null where no pod was scraped
	Ready  int      `json:"ready"`
	Wanted *int32   `json:"wanted"` // of every other second; null where there is no decision
}

type vector struct {
	Name   string  `json:"name"`
	Target float64 `json:"target"`
	Ready  int     `json:"ready"` // at the beginning
	Steps  []step  `json:"steps"`
}

type counter int

func (c *counter) ReadyCount() (int, error)    { return int(*c), nil }
func (c *counter) NotReadyCount() (int, error) { return 0, nil }

func run(t *testing.T, name string, target float64, ready, start, seconds int, load func(second int) (float64, bool)) vector {
	key := types.NamespacedName{Namespace: "team", Name: name}
	collector := metrics.NewMetricCollector(
		func(*autoscalingv1alpha1.Metric, *zap.SugaredLogger) (metrics.StatsScraper, error) { return nil, nil },
		zap.NewNop().Sugar())
	err := collector.CreateOrUpdate(&autoscalingv1alpha1.Metric{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
		Spec: autoscalingv1alpha1.MetricSpec{
			StableWindow: 60 * time.Second, PanicWindow: 6 * time.Second, ScrapeTarget: "service",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer collector.Delete(key.Namespace, key.Name)

	pods := counter(ready)
	began := time.Now().Truncate(time.Second)
	scaler := scaling.New(context.Background(), key.Namespace, key.Name, collector, &pods, &scaling.DeciderSpec{
		MaxScaleUpRate: 1000, MaxScaleDownRate: 2, ScalingMetric: autoscaling.RPS, TargetValue: target, TotalValue: target / 0.7,
		TargetBurstCapacity: 211, PanicThreshold: 2, StableWindow: 60 * time.Second, Reachable: true,
	})
	out := vector{Name: name, Target: target, Ready: ready}
	ordered := map[int]int{} // pods that are ready from a second on
	for second := 1; second <= seconds; second++ {
		now := began.Add(time.Duration(second) * time.Second)
		if n, ok := ordered[second]; ok {
			pods = counter(n)
		}
		next := step{Second: second, Ready: int(pods)}
		if rps, ok := load(second); ok {
			next.RPS = &rps
			collector.Record(key, now, metrics.Stat{PodName: "pods", RequestCount: rps})
		}
		if second%2 == 0 {
			if result := scaler.Scale(zap.NewNop().Sugar(), now); result.ScaleValid {
				next.Wanted = &result.DesiredPodCount
				n := int(result.DesiredPodCount)
				if n < int(pods) {
					pods = counter(n)
				}
				ordered[second+start] = n
			}
		}
		out.Steps = append(out.Steps, next)
	}
	return out
}

func TestWrite(t *testing.T) {
	random := rand.New(rand.NewSource(8))
	noisy := func(rps float64) float64 { return math.Round(rps * (0.9 + 0.2*random.Float64())) }
	always := func(rps func(int) float64) func(int) (float64, bool) {
		return func(second int) (float64, bool) { return rps(second), true }
	}
	vectors := []vector{
		run(t, "step", 70, 0, 30, 300, always(func(s int) float64 {
			if s < 60 {
				return 0
			}
			return noisy(3000)
		})),
		run(t, "spikes", 70, 5, 30, 600, always(func(s int) float64 {
			if s%200 < 40 {
				return noisy(2000)
			}
			return noisy(300)
		})),
		run(t, "fall", 70, 40, 30, 300, always(func(s int) float64 { return noisy(math.Max(20, 2500-10*float64(s))) })),
		run(t, "gaps", 35, 8, 20, 500, func(s int) (float64, bool) {
			quiet := s%97 > 80 || (s > 200 && s < 290) || random.Float64() < 0.1
			return noisy(400 + float64(s)), !quiet
		}),
		run(t, "restless", 12.5, 3, 10, 600, always(func(s int) float64 { return math.Round(600 * random.Float64() * random.Float64()) })),
	}
	file, err := os.Create("../kpa.json")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := json.NewEncoder(file).Encode(vectors); err != nil {
		t.Fatal(err)
	}
}
