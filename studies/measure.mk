# All that the documents say of the embedded pipeline, measured anew: make -f studies/measure.mk
# Some hours on 2 fast cores. What is there already is kept: remove a file to measure it again. A run that was stopped goes on.
# Images are drawn by two processes of one thread. What is timed runs alone: make -f studies/measure.mk timed
PYTHON := .venv/bin/python
CLI := .venv/bin/fastdiff-lab
C := data/calibration/ddim-50
D := data/calibration/dpm-solver++-20
export OMP_NUM_THREADS ?= 1
ONE := --threads 1

.PHONY: drawn timed
.SECONDARY:
drawn: $(C)/encoder-0.safetensors data/ablation/fit_makings.csv runs/suite/ddim-50/table.csv \
  runs/suite/dpm-solver++-20/table.csv data/ablation/rules.csv data/ablation/published.csv data/ablation/extrapolations.csv data/ablation/averages.csv \
  data/suite/scene_distance.csv data/personalised/dreambooth.csv data/personalised/custom-diffusion.csv

# ---- calibration: measured in runs/, where a run that was stopped goes on; what is whole is copied. Order 1 takes five times as long: half the images
calibrate = mkdir -p $(@D) runs/$(@D) && $(CLI) calibrate runs/$@ $(ONE) $(1) && cp runs/$@ $@
as_dpm := --steps 20 --scheduler dpm-solver++
at_dpm := --count 8 $(as_dpm)
$(C)/encoder-%.safetensors:
	$(call calibrate,--order $* $(if $(filter 1,$*),--count 8))
$(C)/prediction-%.safetensors:
	$(call calibrate,--order $* --reuse prediction $(if $(filter 1,$*),--count 8))
data/calibration/ddim-50-guidance-%/encoder-0.safetensors:
	$(call calibrate,--guidance $* --count 4)
$(D)/encoder-%.safetensors:
	$(call calibrate,--order $* $(at_dpm))
$(D)/prediction-%.safetensors:
	$(call calibrate,--order $* --reuse prediction $(at_dpm))

of_ddim := $(foreach name,encoder-0 encoder-1 prediction-0 prediction-1,$(C)/$(name).safetensors)
of_dpm := $(foreach name,encoder-0 encoder-1 prediction-0 prediction-1,$(D)/$(name).safetensors)
of_guidances := $(foreach scale,2 7.5,data/calibration/ddim-50-guidance-$(scale)/encoder-0.safetensors)

# ---- fits
data/ablation/kinds.csv: $(C)/encoder-0.safetensors $(C)/prediction-0.safetensors
	$(PYTHON) -m studies.kinds_of_steps $@ --threads 2
data/ablation/fit_makings.csv: $(C)/encoder-0.safetensors
	$(PYTHON) -m studies.fit_ablation $@ --seeds 1 --jobs 2 --store $(DDIM_STORE)

# ---- suites
F := data/fits/ddim-50
G := data/fits/dpm-solver++-20
fits := $(foreach keys,5 7 9 13 17,$(F)/encoder-$(keys).json $(F)/prediction-$(keys).json) runs/fits/uniform-encoder.json runs/fits/uniform-prediction.json
fits += $(foreach keys,5 7 9 13 17,runs/fits/own-$(keys).json) runs/fits/refined-encoder.json runs/fits/refined-prediction.json
fits_dpm := $(foreach keys,5 7 9 13,$(G)/encoder-$(keys).json $(G)/prediction-$(keys).json)
fit = mkdir -p $(@D) && $(CLI) fit $< --count 16 $(ONE) --output $@ $(1)
runs/fits/uniform.json:
	mkdir -p $(@D)
	$(PYTHON) -c "import fastdiff_lab as fl; fl.KeySchedule.uniform(50, 9).save('$@')"
runs/fits/ddim-%.json: $(C)/encoder-0.safetensors
	mkdir -p $(@D)
	$(CLI) derive $< --num-keys $* --output $@
runs/fits/dpm-%.json: $(D)/encoder-0.safetensors
	mkdir -p $(@D)
	$(CLI) derive $< --num-keys $* --output $@
runs/fits/of-predictions-%.json: $(C)/prediction-0.safetensors
	mkdir -p $(@D)
	$(CLI) derive $< --num-keys $* --output $@
runs/fits/own-%.json: runs/fits/of-predictions-%.json
	$(call fit)
runs/fits/moved-%.json: $(C)/%-0.safetensors
	mkdir -p $(@D)
	$(CLI) derive $< --num-keys 9 --refine $(if $(filter encoder,$*),40,60) --fit $(ONE) --output $@
runs/fits/refined-%.json: runs/fits/moved-%.json
	$(call fit)
runs/fits/uniform-%.json: runs/fits/uniform.json
	$(call fit,--reuse $*)
$(F)/encoder-%.json: runs/fits/ddim-%.json
	$(call fit)
$(F)/prediction-%.json: runs/fits/ddim-%.json
	$(call fit,--reuse prediction)
$(G)/encoder-%.json: runs/fits/dpm-%.json
	$(call fit,$(as_dpm))
$(G)/prediction-%.json: runs/fits/dpm-%.json
	$(call fit,--reuse prediction $(as_dpm))

fits_deepcache := $(foreach interval,2 3 5,runs/fits/deepcache-$(interval).json)
runs/fits/deepcache-%.json:
	mkdir -p $(@D)
	$(PYTHON) -m studies.deepcache_fit $@ --interval $*

# Both draw with two processes; all studies of DDIM find each other's images in one store.
DDIM_STORE := runs/ddim-50.sqlite
suite = $(PYTHON) -m studies.suite --seeds 4 --reference 200 $(foreach file,$(2),--costs $(file)) $(foreach file,$(3),--fit $(file)) $(1)
ddim = $(call suite,--store $(DDIM_STORE) $(foreach file,$(fits_deepcache),--deepcache-fit $(file)) $(1),$(of_ddim),$(fits))
dpm = $(call suite,--store runs/dpm-20.sqlite $(as_dpm) $(1),$(of_dpm),$(fits_dpm))
runs/suite/ddim-50/table.csv: $(of_ddim) $(fits) $(fits_deepcache)
	$(call ddim,--repeats 0 --jobs 2 --output $(@D))
runs/suite/dpm-solver++-20/table.csv: $(of_dpm) $(fits_dpm)
	$(call dpm,--repeats 0 --jobs 2 --output $(@D))

# ---- ablation
data/ablation/rules.csv: $(of_ddim)
	$(PYTHON) -m studies.key_rules $@ --jobs 2 --store $(DDIM_STORE)
data/ablation/published.csv: $(of_ddim)
	$(PYTHON) -m studies.published_keys $@ --keys 10 --jobs 2 --store $(DDIM_STORE)
data/ablation/extrapolations.csv: $(of_ddim) $(of_guidances)
	$(PYTHON) -m studies.ablation $(C) --output data/ablation $(foreach file,$(of_guidances),--other-costs $(file)) $(ONE)
data/ablation/averages.csv: $(of_ddim)
	$(PYTHON) -m studies.averages $@ --threads 1 --jobs 2 --store $(DDIM_STORE)
data/suite/scene_distance.csv: $(C)/encoder-0.safetensors
	$(PYTHON) -m studies.scene_distance $@ --jobs 2
data/personalised/%.csv: $(C)/encoder-0.safetensors
	$(PYTHON) -m studies.personalise $* $(ONE)

# ---- timed, one after the other and with nothing beside them, on the images that are drawn
.NOTPARALLEL: timed
timed: drawn data/ablation/kinds.csv
	$(call ddim,--repeats 7 --threads 2 --output data/suite/ddim-50)
	$(call dpm,--repeats 7 --threads 2 --output data/suite/dpm-solver++-20)
	$(PYTHON) -m studies.bench
	$(PYTHON) -m studies.bench.overheads --output data/bench/overheads.json
